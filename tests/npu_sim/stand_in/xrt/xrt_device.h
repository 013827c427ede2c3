// SPDX-License-Identifier: MIT
// Declarations of current XRT's public C++ interface as far as npu_worker/xrt_device.cpp uses it, so that its hw_context branch is
// compiled by every build. Written from the interface's documentation (xilinx.github.io/XRT, xrt_device.h); nothing is defined.
#pragma once
#include <cstdint>
#include <string>
#include <xrt/detail/abi.h>

namespace xrt
{
class uuid
{
};
class xclbin;
namespace info
{
enum class device { bdf, name };
template <typename Class, Class parameter> struct param_traits {
    using return_type = std::string;
};
} // namespace info
class device
{
  public:
    device();
    explicit device(unsigned int index);
    uuid register_xclbin(const xclbin &x);
    template <info::device parameter> typename info::param_traits<info::device, parameter>::return_type get_info() const;
};
} // namespace xrt
