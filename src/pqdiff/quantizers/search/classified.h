// For classified product quantizers: codewords of a vector in each of its candidate classes, and the class that
// reconstructs it best.
//
// A pair of a vector and a candidate is a lane of the search. Coefficients, codewords and errors of a few vectors stay in
// cache, where tables of all pairs would pass through memory several times. No sum depends on which vectors share a group.

#pragma once

#include "codewords.h"

namespace {
namespace classified {

constexpr int64_t PAIRS = 8 * BLOCK;  // pairs of a group, about: they use a codebook while it is in cache
constexpr int64_t PARTS = 8;          // sums that run side by side

struct Vectors {
  const float* everywhere;  // (N, bases, M): coefficients in every basis
  const float* outside;     // (N, bases): squared length of what lies outside each basis
  const int64_t* classes;   // (N, candidates), the likeliest first
  const float* scales;      // (K, M)
  int64_t number, candidates, bases, classes_of_a_basis;
  int64_t* tokens;          // (S, N), the class first
};

struct Sizes {
  int64_t vectors, pairs, blocks;  // of a group

  explicit Sizes(int64_t candidates)
      : vectors(PAIRS > candidates ? PAIRS / candidates : 1),
        pairs(vectors * candidates),
        blocks((pairs + BLOCK - 1) / BLOCK) {}
  int64_t relative(const Problem& q) const { return q.subspaces * blocks * q.dim * BLOCK; }
  int64_t indices(const Problem& q) const { return q.subspaces * blocks * BLOCK; }
};

// Squared error of the codewords of one pair in its class, in pixels: sum of (codeword scale - coefficient)^2.
inline float error_of(const float* chosen, const float* scale, const float* coefficient, int64_t width) {
  float part[PARTS] = {};
  int64_t m = 0;
  for (; m + PARTS <= width; m += PARTS)
    for (int64_t i = 0; i < PARTS; ++i) {
      const float difference = chosen[m + i] * scale[m + i] - coefficient[m + i];
      part[i] += difference * difference;
    }
  for (int64_t i = 0; m + i < width; ++i) {
    const float difference = chosen[m + i] * scale[m + i] - coefficient[m + i];
    part[i] += difference * difference;
  }
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

// Tokens of `count` vectors from `first` on.
void search_group(
    const Vectors& v, const Problem& q, Find find, const Sizes& size, int64_t first, int64_t count, float* relative,
    int64_t* indices, float* row) {
  const int64_t width = q.subspaces * q.dim, pairs = count * v.candidates, blocks = (pairs + BLOCK - 1) / BLOCK;
  for (int64_t pair = 0; pair < blocks * BLOCK; ++pair) {
    float* lane = relative + pair / BLOCK * q.dim * BLOCK + pair % BLOCK;
    if (pair < pairs) {
      const int64_t n = first + pair / v.candidates, k = v.classes[first * v.candidates + pair];
      const float* coefficient = v.everywhere + (n * v.bases + k / v.classes_of_a_basis) * width;
      const float* scale = v.scales + k * width;
      for (int64_t m = 0; m < width; ++m) row[m] = coefficient[m] / scale[m];
    } else {
      for (int64_t m = 0; m < width; ++m) row[m] = 0;
    }
    for (int64_t s = 0; s < q.subspaces; ++s)
      for (int64_t d = 0; d < q.dim; ++d) lane[(s * size.blocks * q.dim + d) * BLOCK] = row[s * q.dim + d];
  }
  for (int64_t s = 0; s < q.subspaces; ++s)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t left = pairs - block * BLOCK;
      find(relative + (s * size.blocks + block) * q.dim * BLOCK, q.table + s * q.stride, q,
           indices + (s * size.blocks + block) * BLOCK, int(left < BLOCK ? left : BLOCK));
    }
  const int64_t stride = size.blocks * BLOCK;  // of indices, between subspaces
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = first + i;
    int64_t best = 0;
    float least = INF;
    for (int64_t c = 0; c < v.candidates; ++c) {
      const int64_t pair = i * v.candidates + c, k = v.classes[n * v.candidates + c], b = k / v.classes_of_a_basis;
      for (int64_t s = 0; s < q.subspaces; ++s) {
        const float* codeword = q.codebooks + (s * q.codewords + indices[s * stride + pair]) * q.dim;
        for (int64_t d = 0; d < q.dim; ++d) row[s * q.dim + d] = codeword[d];
      }
      const float error = error_of(row, v.scales + k * width, v.everywhere + (n * v.bases + b) * width, width) +
                          v.outside[n * v.bases + b];
      // The likelier of equals, and what is no number before all others: so does argmin of torch.
      if (error < least || (error != error && least == least)) best = c, least = error;
    }
    v.tokens[n] = v.classes[n * v.candidates + best];
    for (int64_t s = 0; s < q.subspaces; ++s)
      v.tokens[(s + 1) * v.number + n] = indices[s * stride + i * v.candidates + best];
  }
}

}  // namespace classified
}  // namespace
