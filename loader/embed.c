/* SPDX-License-Identifier: MIT */
extern int tandem_not_written;
