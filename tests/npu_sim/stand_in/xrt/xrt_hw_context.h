// SPDX-License-Identifier: MIT
// Stand-in, see xrt_device.h.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <xrt/xrt_device.h>

namespace xrt
{
class hw_context
{
  public:
    using cfg_param_type = std::map<std::string, std::uint32_t>;
    enum class access_mode : std::uint8_t { exclusive = 0, shared = 1 };
    hw_context();
    hw_context(const device &d, const uuid &xclbin_id, const cfg_param_type &parameters);
    hw_context(const device &d, const uuid &xclbin_id, access_mode mode);
    hw_context(const device &d, const uuid &xclbin_id);
};
} // namespace xrt
