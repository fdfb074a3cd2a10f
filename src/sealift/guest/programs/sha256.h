/* SHA-256 (FIPS 180-4). */
#ifndef SEALIFT_SHA256_H
#define SEALIFT_SHA256_H

#include "machine.h"

void sha256(const u8 *data, size_t size, u8 digest[32]);

#endif
