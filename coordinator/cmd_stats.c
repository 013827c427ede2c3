/* SPDX-License-Identifier: MIT
 * `stats`: asks the coordinator that runs with a configuration, once, and prints what it says. Starts nothing and reads neither
 * the configuration nor the model. Runs on the main thread. */
#include <jansson.h>

#include "coordinator/commands.h"
#include "coordinator/control_client.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/report.h"
#include "proto/err.h"

int cmd_stats_run(const struct options *o, struct err *err)
{
    struct control_client c;
    struct monitor_snapshot s;
    json_t *j = NULL;
    int r = control_client_find(o->config, o->pid, &c, err);
    if (r == 0)
        r = control_client_ask(&c, "{\"op\":\"stats\",\"pss\":true}\n", NULL, &j, err);
    if (r == 0 && o->json)
        return report_print_json(j, stdout, err);
    if (r == 0)
        r = monitor_json_read(j, &s, err);
    if (r == 0)
        report_snapshot(&s, stdout);
    json_decref(j);
    return r;
}
