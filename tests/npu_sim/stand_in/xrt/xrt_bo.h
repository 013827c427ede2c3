// SPDX-License-Identifier: MIT
// Stand-in, see xrt_device.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <xrt/xrt_device.h>

enum xclBOSyncDirection { XCL_BO_SYNC_BO_TO_DEVICE = 0, XCL_BO_SYNC_BO_FROM_DEVICE };

namespace xrt
{
class hw_context;
using memory_group = std::uint32_t;
class bo
{
  public:
    enum class flags : std::uint32_t { normal, cacheable, device_only, host_only, p2p, svm };
    bo();
    bo(const device &d, std::size_t bytes, flags f, memory_group group);
    bo(const hw_context &c, std::size_t bytes, flags f, memory_group group);
    bo(const bo &parent, std::size_t bytes, std::size_t offset);
    explicit operator bool() const;
    std::size_t size() const;
    void sync(xclBOSyncDirection direction, std::size_t bytes, std::size_t offset);
    template <typename Pointer> Pointer map();
};
} // namespace xrt
