/* base/address.h - IP addresses with a port: "127.0.0.1:8080", "[::1]:8080"; no names.
 *
 * Thread: any. */
#ifndef SKERRY_BASE_ADDRESS_H
#define SKERRY_BASE_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"

#define ADDRESS_TEXT_SIZE 64

/* "10.0.0.1:7600", "[fd00::1]:7600", or without a port (then `default_port`; 0: one is needed).
 * Names of hosts are refused. */
int address_parse(struct sockaddr_storage *out, const char *text, unsigned default_port,
                  struct err *e) ERR_CHECKED;
/* The canonical text. */
void address_format(const struct sockaddr_storage *address, char out[ADDRESS_TEXT_SIZE]);

/* 10/8, 172.16/12, 192.168/16, 100.64/10, 127/8, fc00::/7, ::1: what nodes may speak to each other
 * over. */
bool address_private(const struct sockaddr_storage *address);
/* An error that names the address and the remedy, unless it is private. */
int address_check_private(const struct sockaddr_storage *address, struct err *e) ERR_CHECKED;
/* Of what bind, connect and accept want. */
socklen_t address_length(const struct sockaddr_storage *address);
bool address_equal(const struct sockaddr_storage *a, const struct sockaddr_storage *b);

enum address_family { ADDRESS_NONE = 0, ADDRESS_V4 = 4, ADDRESS_V6 = 6 };

/* The compact form, for tables and packets: all zero is "none". No scope ids: link-local addresses are
 * not private ones. */
struct address {
    uint8_t family; /* enum address_family */
    uint16_t port;
    uint8_t bytes[16]; /* IPv4: the first four, the rest zero */
};
/* False, and ADDRESS_NONE, for anything but IPv4 and IPv6. */
bool address_pack(struct address *out, const struct sockaddr_storage *from);
bool address_unpack(struct sockaddr_storage *out, const struct address *from);
bool address_pack_equal(const struct address *a, const struct address *b);

#endif
