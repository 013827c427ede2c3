// SPDX-License-Identifier: MIT
// The only C++ of the simulated NPU: makes libxrt_coreutil's device object for a handle and hands it the xclbin. XRT's headers for
// this are private; the declarations below resolve by their mangled names (XRT 2.13, src/runtime_src/core/common/device.h).
#include <cerrno>
#include <memory>
#include <system_error>

struct axlf;
namespace xrt_core
{
class device
{
  public:
    void register_axlf(const axlf *top);
};
std::shared_ptr<device> get_userpf_device(void *handle, unsigned int index);
} // namespace xrt_core

extern "C" void sim_glue_refuse_lock()
{
    throw std::system_error(EAGAIN, std::system_category(),
                            "mmap(addr=0x7f0000000000, len=67108864, prot=3, flags=8209, offset=0) failed (err=-11)");
}

extern "C" void *sim_glue_attach(void *handle, unsigned index)
{
    try {
        return new std::shared_ptr<xrt_core::device>(xrt_core::get_userpf_device(handle, index));
    } catch (...) {
        return nullptr;
    }
}

extern "C" void sim_glue_detach(void *core)
{
    delete static_cast<std::shared_ptr<xrt_core::device> *>(core);
}

extern "C" int sim_glue_register(void *core, const axlf *top)
{
    try {
        (*static_cast<std::shared_ptr<xrt_core::device> *>(core))->register_axlf(top);
        return 0;
    } catch (...) {
        return -22;
    }
}
