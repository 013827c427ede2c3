// SPDX-License-Identifier: MIT
// Stand-in, see xrt_device.h.
#pragma once
#include <string>
#include <vector>
#include <xrt/xrt_device.h>

namespace xrt
{
class xclbin
{
  public:
    class kernel
    {
      public:
        std::string get_name() const;
    };
    explicit xclbin(const std::string &file);
    std::vector<kernel> get_kernels() const;
    uuid get_uuid() const;
};
} // namespace xrt
