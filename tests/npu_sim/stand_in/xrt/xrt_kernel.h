// SPDX-License-Identifier: MIT
// Stand-in, see xrt_device.h.
#pragma once
#include <chrono>
#include <string>
#include <xrt/xrt_bo.h>
#include <xrt/xrt_hw_context.h>

enum ert_cmd_state {
    ERT_CMD_STATE_NEW = 1,
    ERT_CMD_STATE_QUEUED,
    ERT_CMD_STATE_RUNNING,
    ERT_CMD_STATE_COMPLETED,
    ERT_CMD_STATE_ERROR,
    ERT_CMD_STATE_ABORT,
    ERT_CMD_STATE_SUBMITTED,
    ERT_CMD_STATE_TIMEOUT,
    ERT_CMD_STATE_NORESPONSE
};

namespace xrt
{
class kernel
{
  public:
    kernel();
    kernel(const hw_context &c, const std::string &name);
    int group_id(int argument) const;
};
class run
{
  public:
    run();
    explicit run(const kernel &k);
    template <typename Argument> void set_arg(int index, Argument &&argument);
    void start();
    ert_cmd_state wait(const std::chrono::milliseconds &timeout) const;
    ert_cmd_state state() const;
};
} // namespace xrt
