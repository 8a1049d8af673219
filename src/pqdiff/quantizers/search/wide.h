// Nearest codeword in many dimensions: integers rule out nearly all codewords, exact distances decide between the rest.
//
// A vector x and a codeword c, both without the mean of the codebook, become a scale times integers of 7 bits, and
// |x - c|^2 / 2 is |x|^2 / 2 plus the score |c|^2 / 2 - x.c. What rounding to integers adds to the score is at most
// |x - ix| |c| + |ix| |c - ic| (Cauchy-Schwarz), so every score lies between two bounds. A codeword whose lower bound is
// above the lowest upper bound cannot be the nearest. Products of integers are twice to four times as fast as those of
// floats, and few codewords are left, whose distances are sums of (x - c)^2. The answer is that of a search of these
// distances over the whole codebook; only the time depends on the bounds.
//
// Codewords are made integers tile by tile, so that memory does not grow with the codebook.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {
namespace wide {

constexpr int LEVELS = 63;             // integers lie in [-63, 63]: two products of pairs fit into 16 bits
constexpr int OFFSET = 64;             // added to those of x, which the instruction wants without a sign
constexpr int STEP = 8;                // dimensions that the inner loop takes at once
constexpr int GROUP = 16;              // codewords, and ...
constexpr int ROWS = 4;                // ... vectors that it compares at once
constexpr int BLOCK = 64;              // vectors that are gathered at once
constexpr int TILE_BYTES = 1 << 17;    // of integers: they stay in the second-level cache
constexpr int LARGEST_TILE = 1024;     // codewords
constexpr int64_t LARGEST_DIM = 1 << 16;  // sums of integers fit into 32 bits
constexpr float LARGEST_NORM = 1e18f;  // squares of longer vectors may overflow: all their distances are computed

// What is kept of a codeword beside its integers.
struct Codewords {
  float *scale, *half_square, *norm, *error;
  int32_t* offset;  // OFFSET times the sum of its integers
};

struct Sizes {
  int64_t dim, padded_dim, tile;

  Sizes(int64_t dim, int64_t codewords) : dim(dim), padded_dim((dim + STEP - 1) / STEP * STEP) {
    const int64_t fits = std::clamp<int64_t>(TILE_BYTES / padded_dim, GROUP, LARGEST_TILE);
    tile = (std::min(fits, codewords) + GROUP - 1) / GROUP * GROUP;
  }
  // In floats: the mean, a tile, and the best distance of every vector; and for each thread a block, the integers of some
  // rows, and their bounds, in whose place a vector without the mean is held before.
  int64_t shared(int64_t vectors) const { return padded_dim + tile * (padded_dim / 4 + 5) + vectors; }
  int64_t bounds() const { return std::max(ROWS * tile, padded_dim); }
  int64_t of_a_thread() const { return BLOCK * padded_dim + ROWS * padded_dim / 4 + bounds(); }
};

inline float sum(__m256 a) {
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

inline float square(const float* x, int64_t dim) {
  __m256 total = _mm256_setzero_ps();
  for (int64_t d = 0; d < dim; d += STEP) {
    const __m256 a = _mm256_loadu_ps(x + d);
    total = _mm256_fmadd_ps(a, a, total);
  }
  return sum(total);
}

// |x - c|^2 by differences: nothing cancels, wherever the vectors lie.
inline float distance(const float* x, const float* c, int64_t dim) {
  __m256 first = _mm256_setzero_ps(), second = first;
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    const __m256 a = _mm256_sub_ps(_mm256_loadu_ps(x + d), _mm256_loadu_ps(c + d));
    const __m256 b = _mm256_sub_ps(_mm256_loadu_ps(x + d + 8), _mm256_loadu_ps(c + d + 8));
    first = _mm256_fmadd_ps(a, a, first);
    second = _mm256_fmadd_ps(b, b, second);
  }
  float total = sum(_mm256_add_ps(first, second));
  for (; d < dim; ++d) total += (x[d] - c[d]) * (x[d] - c[d]);
  return total;
}

inline float largest(__m256 a) {
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

// Eight rows of eight floats become columns.
inline void transpose(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in + i * in_stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
      a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}

// Writes the integers of x (padded with zeros), plus `offset`, four at a time and `stride` bytes apart.
// Returns their scale; `error` becomes |x - scale integers|, `integers` their sum.
inline float to_integers(
    const float* x, int64_t padded_dim, int offset, uint8_t* out, int64_t stride, float& error, int32_t& integers) {
  __m256 magnitude = _mm256_setzero_ps();
  for (int64_t d = 0; d < padded_dim; d += STEP)
    magnitude = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + d)), magnitude);
  const float most = largest(magnitude);
  const float scale = most > 1e-30f ? most / LEVELS : 0, inverse = scale > 0 ? 1 / scale : 0;
  // The first byte of every 32-bit integer, in four adjacent bytes of each half.
  const __m256i first_bytes = _mm256_set1_epi32(0x0c080400);
  __m256 squares = _mm256_setzero_ps();
  __m256i total = _mm256_setzero_si256();
  for (int64_t d = 0; d < padded_dim; d += STEP) {
    const __m256 a = _mm256_loadu_ps(x + d);
    const __m256i values = _mm256_cvtps_epi32(_mm256_mul_ps(a, _mm256_set1_ps(inverse)));
    const __m256 rest = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(values), _mm256_set1_ps(scale), a);
    squares = _mm256_fmadd_ps(rest, rest, squares);
    total = _mm256_add_epi32(total, values);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_add_epi32(values, _mm256_set1_epi32(offset)), first_bytes);
    const int32_t low = _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes));
    const int32_t high = _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1));
    __builtin_memcpy(out + d / 4 * stride, &low, 4);
    __builtin_memcpy(out + (d / 4 + 1) * stride, &high, 4);
  }
  error = std::sqrt(sum(squares));
  int32_t parts[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), total);
  integers = 0;
  for (int part : parts) integers += part;
  return scale;
}

// Integers of the codewords `first` to `first + GROUP` of a tile; those behind the last one are infinitely far.
inline void prepare_group(
    const float* codebook, const float* mean, const Sizes& size, int64_t first, int64_t count, float* x, int8_t* table,
    const Codewords& kept) {
  for (int64_t k = first; k < first + GROUP; ++k) {
    const bool real = k < count;
    for (int64_t d = 0; d < size.dim; ++d) x[d] = real ? codebook[k * size.dim + d] - mean[d] : 0;
    for (int64_t d = size.dim; d < size.padded_dim; ++d) x[d] = 0;
    uint8_t* out = reinterpret_cast<uint8_t*>(table) + k / 8 * 8 * size.padded_dim + k % 8 * 4;
    int32_t integers;
    kept.scale[k] = to_integers(x, size.padded_dim, 0, out, 32, kept.error[k], integers);
    const float squared = square(x, size.padded_dim);
    kept.norm[k] = std::sqrt(squared);
    kept.half_square[k] = real ? squared / 2 : std::numeric_limits<float>::infinity();
    kept.offset[k] = OFFSET * integers;
  }
}

// Products of the integers of ROWS vectors with those of two times eight codewords.
__attribute__((noinline)) static void multiply(const uint8_t* x, const int8_t* table, int64_t padded_dim, __m256i sums[2][ROWS]) {
  static_assert(ROWS == 4, "one named register for each sum: from arrays compilers spill some");
  const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
  __m256i a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
  const __m256i* a = reinterpret_cast<const __m256i*>(table);
  const __m256i* b = reinterpret_cast<const __m256i*>(table + 8 * padded_dim);
  const auto add_products = [&](const uint8_t* row, __m256i& sum_a, __m256i& sum_b) {
    int32_t four[2];
    __builtin_memcpy(four, row, sizeof four);
    const __m256i x0 = _mm256_set1_epi32(four[0]), x1 = _mm256_set1_epi32(four[1]);
    const __m256i pairs_a = _mm256_add_epi16(_mm256_maddubs_epi16(x0, a[0]), _mm256_maddubs_epi16(x1, a[1]));
    const __m256i pairs_b = _mm256_add_epi16(_mm256_maddubs_epi16(x0, b[0]), _mm256_maddubs_epi16(x1, b[1]));
    sum_a = _mm256_add_epi32(sum_a, _mm256_madd_epi16(pairs_a, ones));
    sum_b = _mm256_add_epi32(sum_b, _mm256_madd_epi16(pairs_b, ones));
  };
  for (int64_t d = 0; d < padded_dim; d += STEP, x += STEP, a += 2, b += 2) {
    add_products(x, a0, b0);
    add_products(x + padded_dim, a1, b1);
    add_products(x + 2 * padded_dim, a2, b2);
    add_products(x + 3 * padded_dim, a3, b3);
  }
  const __m256i all[2][ROWS] = {{a0, a1, a2, a3}, {b0, b1, b2, b3}};
  for (int v = 0; v < 2; ++v)
    for (int r = 0; r < ROWS; ++r) sums[v][r] = all[v][r];
}

// Lower bounds of the scores of ROWS vectors with all codewords of a tile; `lowest` becomes each vector's least upper bound.
inline void bound_scores(
    const uint8_t* integers, const float* scales, const float* errors, const float* norms, const int8_t* table,
    const Codewords& kept, const Sizes& size, int64_t groups, float* bounds, float* lowest) {
  __m256 least[ROWS];
  for (int r = 0; r < ROWS; ++r) least[r] = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  for (int64_t g = 0; g < groups; ++g) {
    __m256i sums[2][ROWS];
    multiply(integers, table + g * GROUP * size.padded_dim, size.padded_dim, sums);
    for (int v = 0; v < 2; ++v) {
      const int64_t k = g * GROUP + v * 8;
      const __m256i offset = _mm256_load_si256(reinterpret_cast<const __m256i*>(kept.offset + k));
      const __m256 scale = _mm256_load_ps(kept.scale + k), half_square = _mm256_load_ps(kept.half_square + k);
      const __m256 norm = _mm256_load_ps(kept.norm + k), error = _mm256_load_ps(kept.error + k);
      for (int r = 0; r < ROWS; ++r) {
        const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums[v][r], offset)), scale);
        const __m256 score = _mm256_fnmadd_ps(product, _mm256_set1_ps(scales[r]), half_square);
        const __m256 rounding = _mm256_mul_ps(norm, _mm256_set1_ps(errors[r]));
        const __m256 wide = _mm256_fmadd_ps(error, _mm256_set1_ps(norms[r]), rounding);
        least[r] = _mm256_min_ps(_mm256_add_ps(score, wide), least[r]);
        _mm256_storeu_ps(bounds + r * size.tile + k, _mm256_sub_ps(score, wide));
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float values[8];
    _mm256_storeu_ps(values, least[r]);
    lowest[r] = *std::min_element(values, values + 8);
  }
}

// Compares vectors with one tile. x (count, padded_dim) are vectors as they are; `best` and `indices` hold the result so far.
inline void search_tile(
    const float* x, int count, const float* mean, const float* codebook, int64_t first, int64_t codewords,
    float largest_norm, const int8_t* table, const Codewords& kept, const Sizes& size, float* scratch, float* best,
    int64_t* indices) {
  constexpr float UNIT = 0x1p-24f;
  uint8_t* integers = reinterpret_cast<uint8_t*>(scratch);  // (ROWS, padded_dim)
  float* bounds = scratch + ROWS * (size.padded_dim / 4);   // (ROWS, tile)
  for (int start = 0; start < count; start += ROWS) {
    float scales[ROWS], errors[ROWS], norms[ROWS], squares[ROWS], lowest[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      float* centered = bounds;  // not yet in use
      const float* row = x + std::min(start + r, count - 1) * size.padded_dim;
      for (int64_t d = 0; d < size.padded_dim; ++d) centered[d] = row[d] - mean[d];
      squares[r] = square(centered, size.padded_dim);
      norms[r] = std::sqrt(squares[r]);
      if (!(norms[r] < LARGEST_NORM)) {
        for (int64_t d = 0; d < size.padded_dim; ++d) centered[d] = 0;  // the bounds are not used
      }
      int32_t unused;
      scales[r] = to_integers(centered, size.padded_dim, OFFSET, integers + r * size.padded_dim, 4, errors[r], unused);
      norms[r] += errors[r];  // at least the norm of scale times integers
    }
    bound_scores(
        integers, scales, errors, norms, table, kept, size, (codewords + GROUP - 1) / GROUP, bounds, lowest);
    for (int r = 0; r < ROWS && start + r < count; ++r) {
      const float* row = x + (start + r) * size.padded_dim;
      float& least = best[start + r];
      int64_t& index = indices[start + r];
      // Rounding of floats, in the bounds and in the distances: far less than that of integers.
      const float reach = norms[r] + largest_norm;
      const float rounding = float(size.dim + 64) * UNIT * reach * reach;
      const auto limit_for = [&](float found) { return (found - squares[r]) / 2 + rounding; };
      float limit = std::min(lowest[r] + rounding, limit_for(least));
      const bool all = !(norms[r] < LARGEST_NORM) || !(limit < std::numeric_limits<float>::infinity());
      for (int64_t k = 0; k < codewords; k += 8) {
        const __m256 lower = _mm256_loadu_ps(bounds + r * size.tile + k);
        unsigned mask = all ? 255 : _mm256_movemask_ps(_mm256_cmp_ps(lower, _mm256_set1_ps(limit), _CMP_NGT_UQ));
        for (; mask; mask &= mask - 1) {
          const int64_t j = k + __builtin_ctz(mask);
          if (j >= codewords) break;
          const float found = distance(row, codebook + j * size.dim, size.dim);
          if (found < least) {  // strict: of equals the first one stays
            least = found;
            index = first + j;
            limit = std::min(limit, limit_for(found));
          }
        }
      }
    }
  }
}

}  // namespace wide
}  // namespace
