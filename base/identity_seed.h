/* base/identity_seed.h - the secret itself, between identity.c and identity_certificate.c only. */
#ifndef SKERRY_BASE_IDENTITY_SEED_H
#define SKERRY_BASE_IDENTITY_SEED_H

#include "base/identity.h"

/* 32 bytes, valid as long as the identity. */
const uint8_t *identity_seed(const struct identity *identity);

#endif
