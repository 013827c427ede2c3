# Run by `cmake --install`: what names the place of the installation in its text, or must not be written over. CMAKE_INSTALL_PREFIX is
# known only now; DESTDIR is put before every path by file(INSTALL), and is in no text.
# From packaging/CMakeLists.txt: TANDEM_BINDIR, TANDEM_STAGES_DIR, TANDEM_SYSCONFDIR, TANDEM_DOCDIR, TANDEM_SOURCE, TANDEM_BUILT
get_filename_component(prefix "${CMAKE_INSTALL_PREFIX}" ABSOLUTE)
function(absolute folder ret)
    if(IS_ABSOLUTE "${folder}")
        set(${ret} "${folder}" PARENT_SCOPE)
    else()
        set(${ret} "${prefix}/${folder}" PARENT_SCOPE)
    endif()
endfunction()
absolute("${TANDEM_BINDIR}" BINDIR)
absolute("${TANDEM_STAGES_DIR}" STAGESDIR)
absolute("${TANDEM_DOCDIR}" DOCDIR)
if(prefix STREQUAL "/usr" AND TANDEM_SYSCONFDIR STREQUAL "etc") # GNU's and Debian's rule
    set(CONFDIR /etc/tandem)
else()
    absolute("${TANDEM_SYSCONFDIR}/tandem" CONFDIR)
endif()

# install_text(<template> <folder>)
function(install_text template folder)
    get_filename_component(name "${template}" NAME)
    string(REGEX REPLACE "\\.in$" "" name "${name}")
    configure_file("${TANDEM_SOURCE}/${template}" "${TANDEM_BUILT}/installed/${name}" @ONLY)
    file(INSTALL DESTINATION "${folder}" TYPE FILE FILES "${TANDEM_BUILT}/installed/${name}")
endfunction()
foreach(unit coordinator loader npu-worker gpu-worker)
    install_text(systemd/tandem-${unit}.service.in "${prefix}/lib/systemd/system")
endforeach()
# Who copies it to /etc has systemd run the stages: it is no part of the units until then.
install_text(systemd/tandem-coordinator.service.d/attached.conf.in
             "${DOCDIR}/examples/tandem-coordinator.service.d")

if(EXISTS "$ENV{DESTDIR}${CONFDIR}/tandem.yaml")
    message(STATUS "Kept: $ENV{DESTDIR}${CONFDIR}/tandem.yaml")
else()
    file(INSTALL DESTINATION "${CONFDIR}" TYPE FILE FILES "${TANDEM_BUILT}/tandem.yaml")
endif()
