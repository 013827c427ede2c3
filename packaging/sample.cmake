# The configuration of the service: `coordinator sample-config` with an address, without which `serve` has nothing to do.
# cmake -DCOORDINATOR=... -DOUT=... -P sample.cmake
execute_process(COMMAND ${COORDINATOR} sample-config --model /var/lib/tandem/model.gguf OUTPUT_VARIABLE text RESULT_VARIABLE status)
string(REPLACE "\nhttp: {listen: none," "\nhttp: {listen: 127.0.0.1:8080," with "${text}")
if(NOT status EQUAL 0 OR with STREQUAL text)
    message(FATAL_ERROR "${COORDINATOR} sample-config ended with '${status}', or its 'http' begins no longer with 'listen: none'")
endif()
string(REPLACE "what stands here are the defaults.\n"
       "what stands here are the defaults,\n# but for http.listen. The model must be readable to the user tandem.\n" with "${with}")
file(WRITE ${OUT} "${with}")
