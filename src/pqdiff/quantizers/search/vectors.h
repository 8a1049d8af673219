// Vectors of floats, one layer for every instruction set: AVX-512, AVX2, or what the compiler makes of 128 bits.

#pragma once

#include <cstdint>
#include <limits>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

#if defined(__AVX512F__)

using Vec = __m512;
using Mask = __mmask16;
constexpr int LANES = 16, REGISTERS = 32;
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec uniform(float a) { return _mm512_set1_ps(a); }
inline Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }  // b where a is NaN
inline Vec add_square(Vec a, Vec sum) { return _mm512_fmadd_ps(a, a, sum); }
inline Vec magnitude(Vec a) { return _mm512_abs_ps(a); }
inline Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Vec select(Mask mask, Vec a, Vec b) { return _mm512_mask_blend_ps(mask, b, a); }
inline unsigned equal_bits(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline unsigned less_bits(Vec a, Vec b) { return less(a, b); }
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }
inline float lowest(Vec a) { return _mm512_reduce_min_ps(a); }

#elif defined(__AVX2__) && defined(__FMA__)

using Vec = __m256;
using Mask = __m256;
constexpr int LANES = 8, REGISTERS = 16;
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline Vec uniform(float a) { return _mm256_set1_ps(a); }
inline Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec add_square(Vec a, Vec sum) { return _mm256_fmadd_ps(a, a, sum); }
inline Vec magnitude(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Vec select(Mask mask, Vec a, Vec b) { return _mm256_blendv_ps(b, a, mask); }
inline unsigned equal_bits(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline unsigned less_bits(Vec a, Vec b) { return _mm256_movemask_ps(less(a, b)); }
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return _mm256_fmadd_ps(a, b, sum); }
inline float lowest(Vec a) {
  __m128 half = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_min_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_min_ss(half, _mm_movehdup_ps(half)));
}

#else  // whatever 128-bit vectors the machine has, by the compiler's own vector types

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
constexpr int LANES = 4, REGISTERS = 16;
inline Vec load(const float* p) {
  Vec a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
inline void store(float* p, Vec a) { __builtin_memcpy(p, &a, sizeof a); }
inline Vec uniform(float a) { return Vec{a, a, a, a}; }
inline Mask less(Vec a, Vec b) { return a < b; }
inline Vec select(Mask mask, Vec a, Vec b) { return (Vec)((mask & (Mask)a) | (~mask & (Mask)b)); }
inline Vec minimum(Vec a, Vec b) { return select(a < b, a, b); }
inline Vec add_square(Vec a, Vec sum) { return a * a + sum; }
inline Vec magnitude(Vec a) { return (Vec)((Mask)a & 0x7fffffff); }
inline unsigned bits(Mask mask) { return (mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8); }
inline unsigned equal_bits(Vec a, Vec b) { return bits(a == b); }
inline unsigned less_bits(Vec a, Vec b) { return bits(a < b); }
inline Vec maximum(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return a * b + sum; }
inline float lowest(Vec a) {
  const float left = a[0] < a[1] ? a[0] : a[1], right = a[2] < a[3] ? a[2] : a[3];
  return left < right ? left : right;
}

#endif

}  // namespace
