// SPDX-License-Identifier: MIT
// Stand-in, see xrt_device.h.
#pragma once

namespace xrt::detail
{
struct abi {
    const unsigned int major{2};
    const unsigned int minor{18};
    const unsigned int code{(2 << 16) + 18};
};
} // namespace xrt::detail
