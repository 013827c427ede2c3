# Debian packages by CPack, from a build whose prefix is /usr (scripts/package):
#   tandem       everything but
#   tandem-xrt   the module of XRT, so that who has no NPU needs no XRT
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME tandem)
set(CPACK_PACKAGE_VENDOR Tandem)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Gemma 3 language models as a pipeline of small processes")
set(TANDEM_MAINTAINER "The Tandem authors <tandem@localhost>" CACHE STRING "Maintainer of the packages: Name <address>")
set(CPACK_PACKAGE_CONTACT ${TANDEM_MAINTAINER})
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_STRIP_FILES ON)
# Units and configuration have the prefix in their text: it is the real one, and DESTDIR says where files go.
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_CURRENT_SOURCE_DIR}/debian/prepare.cmake)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_COMPONENTS_ALL tandem)
if(TANDEM_HAVE_XRT)
    list(APPEND CPACK_COMPONENTS_ALL xrt)
endif()
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)

set(CPACK_DEBIAN_TANDEM_PACKAGE_NAME tandem)
set(CPACK_DEBIAN_TANDEM_PACKAGE_SECTION science)
set(CPACK_DEBIAN_TANDEM_PACKAGE_DEPENDS "systemd | systemd-standalone-sysusers | systemd-sysusers") # postinst; libraries are added
if(TANDEM_HAVE_VULKAN)
    set(CPACK_DEBIAN_TANDEM_PACKAGE_RECOMMENDS "libvulkan1, mesa-vulkan-drivers | vulkan-icd") # loaded where they are there
endif()
set(CPACK_DEBIAN_TANDEM_PACKAGE_SUGGESTS "tandem-xrt, bash-completion")
set(CPACK_DEBIAN_TANDEM_DESCRIPTION # below the summary
"Runs Gemma 3 text models on one machine: attention in one process, the
feed-forward network in another, the model file in a third, each with a
memory cap that is planned before anything starts. Serves the OpenAI API
and a chat page, or answers on the command line. Models larger than memory
are streamed. Converts and quantizes checkpoints to GGUF.")
set(CPACK_DEBIAN_TANDEM_PACKAGE_CONTROL_EXTRA ${CMAKE_CURRENT_SOURCE_DIR}/debian/postinst ${CMAKE_CURRENT_SOURCE_DIR}/debian/prerm
    ${CMAKE_CURRENT_SOURCE_DIR}/debian/postrm ${CMAKE_CURRENT_SOURCE_DIR}/debian/conffiles)

set(CPACK_DEBIAN_XRT_PACKAGE_NAME tandem-xrt)
set(CPACK_DEBIAN_XRT_PACKAGE_SECTION science)
set(CPACK_DEBIAN_XRT_PACKAGE_DEPENDS "tandem (= ${PROJECT_VERSION})") # the module has no stable interface
set(CPACK_DEBIAN_XRT_DESCRIPTION
"This package has the module by which npu_worker of tandem computes its matrix
products on an NPU through XRT.")
include(CPack)
