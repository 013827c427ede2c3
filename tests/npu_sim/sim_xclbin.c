/* SPDX-License-Identifier: MIT
 * An axlf container (xclbin.h) with the sections that XRT reads to find a kernel: memory banks, the kernel's instance, which
 * argument lies in which bank, and the XML that names arguments and their offsets in the packet. No bitstream, no signature. */
#include "tests/npu_sim/sim_xclbin.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xclbin.h>

#define BUFFERS 5
#define FILE_BYTES 65536u
#define SECTION_ALIGN 8u

enum { HOST_BANK, INSTRUCTION_BANK, BANKS };

struct section {
    enum axlf_section_kind kind;
    const char *name;
    const void *data;
    size_t bytes;
};

static size_t write_argument(char *xml, size_t room, const char *name, int id, unsigned qualifier, unsigned bytes, unsigned offset,
                             const char *type)
{
    int n = snprintf(xml, room,
                     "<arg name=\"%s\" addressQualifier=\"%u\" id=\"%d\" size=\"0x%x\" offset=\"0x%x\" hostOffset=\"0x0\" "
                     "hostSize=\"0x%x\" type=\"%s\"/>\n",
                     name, qualifier, id, bytes, offset, bytes, type);
    return n > 0 && (size_t)n < room ? (size_t)n : 0;
}

static size_t write_xml(char *xml, size_t room, const char *kernel, const char *tag)
{
    size_t n =
        (size_t)snprintf(xml, room,
                         "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<project name=\"%s\"><platform vendor=\"tests\" "
                         "boardid=\"npu\" name=\"" SIM_XCLBIN_PLATFORM "\"><device name=\"npu\" fpgaDevice=\"npu\">"
                         "<core name=\"OCL_REGION_0\" target=\"bitstream\"><kernel name=\"%s\" language=\"c\" type=\"dpu\">\n",
                         tag, kernel);
    n += write_argument(xml + n, room - n, "opcode", 0, 0, 8, 0x00, "uint64_t");
    n += write_argument(xml + n, room - n, "instr", 1, 1, 8, 0x08, "char *");
    n += write_argument(xml + n, room - n, "ninstr", 2, 0, 4, 0x10, "uint32_t");
    for (int i = 0; i < BUFFERS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "bo%d", i);
        n += write_argument(xml + n, room - n, name, 3 + i, 1, 8, 0x14 + 8 * (unsigned)i, "void*");
    }
    n += (size_t)snprintf(xml + n, room - n, "<instance name=\"inst0\"/></kernel></core></device></platform></project>\n");
    return n;
}

static struct mem_topology *banks(size_t *ret_bytes)
{
    struct mem_topology *t = calloc(1, sizeof(*t) + BANKS * sizeof(struct mem_data));
    static const char *const tags[BANKS] = {"HOST", "SRAM"};
    if (!t)
        return NULL;
    t->m_count = BANKS;
    for (int i = 0; i < BANKS; i++) {
        struct mem_data *d = &t->m_mem_data[i];
        d->m_type = MEM_DRAM;
        d->m_used = 1;
        d->m_size = 16u << 20; /* KiB */
        d->m_base_address = (uint64_t)(i + 1) << 40;
        strcpy((char *)d->m_tag, tags[i]);
    }
    *ret_bytes = offsetof(struct mem_topology, m_mem_data) + BANKS * sizeof(struct mem_data);
    return t;
}

static struct connectivity *connections(size_t *ret_bytes)
{
    struct connectivity *c = calloc(1, sizeof(*c) + (BUFFERS + 1) * sizeof(struct connection));
    if (!c)
        return NULL;
    c->m_count = BUFFERS + 1;
    for (int i = 0; i <= BUFFERS; i++) {
        c->m_connection[i].arg_index = i == 0 ? 1 : 2 + i;
        c->m_connection[i].mem_data_index = i == 0 ? INSTRUCTION_BANK : HOST_BANK;
    }
    *ret_bytes = offsetof(struct connectivity, m_connection) + (size_t)c->m_count * sizeof(struct connection);
    return c;
}

static void write_header(struct axlf *a, const char *xml, size_t xml_bytes, uint32_t n_sections)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a over the XML: the id follows the content */
    for (size_t i = 0; i < xml_bytes; i++)
        hash = (hash ^ (unsigned char)xml[i]) * 0x100000001b3u;
    memcpy(a->m_magic, "xclbin2", 8);
    a->m_signature_length = -1;
    memset(a->reserved, 0xff, sizeof(a->reserved));
    a->m_uniqueId = hash;
    a->m_header.m_versionMajor = 2;
    a->m_header.m_versionMinor = 13;
    a->m_header.m_mode = XCLBIN_FLAT;
    a->m_header.m_numSections = n_sections;
    strcpy((char *)a->m_header.m_platformVBNV, SIM_XCLBIN_PLATFORM);
    memcpy(a->m_header.uuid, &hash, 8);
    hash = ~hash * 31;
    memcpy(a->m_header.uuid + 8, &hash, 8);
}

static size_t fill(char *file, const struct section *sections, uint32_t n, const char *xml, size_t xml_bytes)
{
    struct axlf *a = (struct axlf *)(void *)file;
    size_t at = offsetof(struct axlf, m_sections) + n * sizeof(struct axlf_section_header);
    write_header(a, xml, xml_bytes, n);
    for (uint32_t i = 0; i < n; i++) {
        struct axlf_section_header *h = &a->m_sections[i];
        at = (at + SECTION_ALIGN - 1) / SECTION_ALIGN * SECTION_ALIGN;
        if (at + sections[i].bytes > FILE_BYTES)
            return 0;
        h->m_sectionKind = sections[i].kind;
        strcpy(h->m_sectionName, sections[i].name);
        h->m_sectionOffset = at;
        h->m_sectionSize = sections[i].bytes;
        memcpy(file + at, sections[i].data, sections[i].bytes);
        at += sections[i].bytes;
    }
    a->m_header.m_length = at;
    return at;
}

static int write_file(const char *path, const char *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        return -errno;
    bool ok = fwrite(data, 1, bytes, f) == bytes;
    return fclose(f) == 0 && ok ? 0 : -EIO;
}

int sim_xclbin_write(const char *path, const char *kernel, const char *tag)
{
    static _Alignas(8) char file[FILE_BYTES];
    char xml[4096];
    struct ip_layout ip = {.m_count = 1};
    size_t banks_bytes = 0, connections_bytes = 0, xml_bytes = write_xml(xml, sizeof(xml), kernel, tag);
    struct mem_topology *memory = banks(&banks_bytes);
    struct connectivity *wires = connections(&connections_bytes);
    ip.m_ip_data[0].m_type = IP_KERNEL;
    ip.m_ip_data[0].properties = AP_CTRL_CHAIN << IP_CONTROL_SHIFT;
    ip.m_ip_data[0].m_base_address = 0x10000;
    snprintf((char *)ip.m_ip_data[0].m_name, sizeof(ip.m_ip_data[0].m_name), "%.50s:inst0", kernel);
    const struct section sections[] = {{MEM_TOPOLOGY, "mem", memory, banks_bytes},
                                       {ASK_GROUP_TOPOLOGY, "gmem", memory, banks_bytes},
                                       {IP_LAYOUT, "ip", &ip, offsetof(struct ip_layout, m_ip_data) + sizeof(struct ip_data)},
                                       {CONNECTIVITY, "conn", wires, connections_bytes},
                                       {ASK_GROUP_CONNECTIVITY, "gconn", wires, connections_bytes},
                                       {EMBEDDED_METADATA, "xml", xml, xml_bytes}};
    memset(file, 0, sizeof(file));
    size_t bytes = memory && wires ? fill(file, sections, sizeof(sections) / sizeof(*sections), xml, xml_bytes) : 0;
    free(memory);
    free(wires);
    return bytes ? write_file(path, file, bytes) : -ENOMEM;
}
