# Compute shaders -> SPIR-V as C arrays, by glslc.
# tandem_shaders(<library> <folder> <list>): <list> holds "name|source|definitions,by,commas"; the library offers them through
# gpu_worker/shaders.h. Sources named *_cm.comp go through spirv_types (its head says why), and so without the optimizer, which
# does not know their instructions either.
add_executable(spirv_types ${CMAKE_CURRENT_LIST_DIR}/spirv_types.c)
target_link_libraries(spirv_types PRIVATE tandem_options)
function(tandem_shaders target folder)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/${target})
    file(MAKE_DIRECTORY ${out})
    set(arrays "")
    set(rows "")
    set(files "")
    foreach(entry ${ARGN})
        string(REPLACE "|" ";" parts "${entry}")
        list(GET parts 0 name)
        list(GET parts 1 source)
        set(definitions "")
        list(LENGTH parts n)
        if(n GREATER 2)
            list(GET parts 2 definitions)
            string(REPLACE "," ";" definitions "${definitions}")
            list(TRANSFORM definitions PREPEND "-D")
        endif()
        if(source MATCHES "_cm.comp$" AND NOT definitions MATCHES "COOPMAT_(NV|PLAIN)")
            add_custom_command(
                OUTPUT ${out}/${name}.inc
                COMMAND ${GLSLC} --target-env=vulkan1.2 -Werror ${definitions} -MD -MF ${out}/${name}.d -MT ${out}/${name}.inc
                        -o ${out}/${name}.spv ${folder}/${source}
                COMMAND spirv_types ${out}/${name}.spv ${out}/${name}.inc
                DEPENDS ${folder}/${source} spirv_types
                DEPFILE ${out}/${name}.d
                COMMENT "Shader ${name}"
                VERBATIM)
        else()
        add_custom_command(
            OUTPUT ${out}/${name}.inc
            COMMAND ${GLSLC} --target-env=vulkan1.2 -O -Werror ${definitions} -mfmt=c -MD -MF ${out}/${name}.d
                    -o ${out}/${name}.inc ${folder}/${source}
            DEPENDS ${folder}/${source}
            DEPFILE ${out}/${name}.d
            COMMENT "Shader ${name}"
            VERBATIM)
        endif()
        list(APPEND files ${out}/${name}.inc)
        string(APPEND arrays "static const uint32_t ${name}[] =\n#include \"${name}.inc\"\n    ;\n")
        string(APPEND rows "    {\"${name}\", ${name}, sizeof(${name})},\n")
    endforeach()
    file(CONFIGURE OUTPUT ${out}/shaders.c CONTENT "#include \"gpu_worker/shaders.h\"\n${arrays}
const struct shaders_code shaders_table[] = {\n${rows}};\nconst size_t shaders_count = sizeof(shaders_table) / sizeof(*shaders_table);\n")
    set_source_files_properties(${out}/shaders.c PROPERTIES OBJECT_DEPENDS "${files}")
    target_sources(${target} PRIVATE ${out}/shaders.c)
    target_include_directories(${target} PRIVATE ${out})
endfunction()
