// Nearest codeword per subspace, exact in fp32, and what a product quantizer needs for its backward pass.
//
// A block of pixels stays in vector registers, one pixel a lane, while the codewords stream by as uniform values. Over
// a run of 16 codewords only the minimum is kept; the winning run of each pixel is then scanned once more, one codeword
// a lane. Distances are sums of (z - c)^2, never the expanded square: nothing cancels, wherever the data lie. Padding
// codewords are infinite and can never win.
//
// For few dimensions, half the arithmetic finds the winning run: |c|^2 / 2 - z c, around the mean of the codewords. These
// values are rounded otherwise than distances, so a run wins only if all others are behind by more than all rounding can
// explain. Pixels for which that is not so are searched by distances.
//
// From WIDE dimensions on, integers rule out most codewords first: see wide.h. Classes: see classified.h.
//
// No -ffast-math: NaN, infinities and ties are defined. The vector layer below names every fused multiply-add, and the
// build forbids others, or the two scans could round differently.

#include <cstdint>
#include <cstdlib>
#include <limits>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__AVX2__) && defined(__FMA__)
#include "wide.h"
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

constexpr int RUN = 16;                        // codewords whose minimum is kept in place of their indices
constexpr int CHUNK = 16;                      // terms summed one by one; chunks are summed in turn: less rounding
constexpr int VECTORS = REGISTERS / 8;         // pixels in flight, in vectors
constexpr int BLOCK = VECTORS * LANES;         // pixels in flight
constexpr int SMALL = 8;                       // dimensions up to which a pixel stays in registers
constexpr int WIDE = 24;                       // dimensions from which integers are faster
constexpr int MANY = 1024;                     // vectors from which the filter is worth its table

struct Problem {
  const float* z;          // (B, S, D, N) with strides
  const int64_t* strides;  // of z, in floats
  int64_t batch, subspaces, dim, positions, codewords;
  const float* codebooks;  // (S, K, D)
  int64_t* indices;        // (B, S, N)
  float* z_q;              // (B, S, D, N) or null
  int32_t* counts;         // (S, K) or null
  float* residual_sums;    // (S, K, D)
  double* squared_errors;  // (S)
  // Set by prepare:
  int64_t runs, stride;  // of a table in floats
  bool filtered;
  const float* table;  // (S, stride), see fill_table
};

// Best distance and its run, for each pixel of a block: x (D, BLOCK), D up to SMALL.
template <int D>
void find_runs(const float* x, const float* table, int64_t runs, float* best_distance, float* best_run) {
  constexpr int P = D <= 4 || REGISTERS < 32 ? VECTORS : VECTORS / 2;
  for (int first = 0; first < VECTORS; first += P) {
    Vec z[D][P], best[P], id[P];
    for (int d = 0; d < D; ++d)
      for (int p = 0; p < P; ++p) z[d][p] = load(x + d * BLOCK + (first + p) * LANES);
    for (int p = 0; p < P; ++p) best[p] = uniform(INF), id[p] = uniform(0);
    const float* codeword = table;
    for (int64_t r = 0; r < runs; ++r, codeword += D * RUN) {
      Vec low[P];
      for (int p = 0; p < P; ++p) low[p] = uniform(INF);
#pragma GCC unroll 8
      for (int j = 0; j < RUN; ++j) {
        Vec c[D];
        for (int d = 0; d < D; ++d) c[d] = uniform(codeword[d * RUN + j]);
        for (int p = 0; p < P; ++p) {
          Vec distance = z[0][p] - c[0];
          if (D == 1) {
            distance = magnitude(distance);  // no squares: they would underflow where differences do not
          } else {
            distance = distance * distance;
            for (int d = 1; d < D; ++d) distance = add_square(z[d][p] - c[d], distance);
          }
          low[p] = minimum(distance, low[p]);
        }
      }
      for (int p = 0; p < P; ++p) {
        id[p] = select(less(low[p], best[p]), uniform(float(r)), id[p]);
        best[p] = minimum(low[p], best[p]);
      }
    }
    for (int p = 0; p < P; ++p) {
      store(best_distance + (first + p) * LANES, best[p]);
      store(best_run + (first + p) * LANES, id[p]);
    }
  }
}

// Decides how codewords are searched for so many vectors. The table of a subspace has exact codewords (runs, D, RUN), and
// with a filter its values (runs, D + 1, RUN) and the mean of the codewords (D).
void prepare(Problem& q, int64_t vectors) {
  q.runs = (q.codewords + RUN - 1) / RUN;
  q.filtered = q.dim > 1 && q.dim <= SMALL && vectors >= MANY;
  const int64_t filter = q.filtered ? q.runs * (q.dim + 1) * RUN + q.dim : 0;
  q.stride = (q.runs * q.dim * RUN + filter + 15) / 16 * 16;
}

void fill_table(const Problem& q, int64_t s, float* table) {
  const float* codebook = q.codebooks + s * q.codewords * q.dim;
  float* filter = table + q.runs * q.dim * RUN;
  float* mean = filter + q.runs * (q.dim + 1) * RUN;
  for (int64_t d = 0; d < q.dim; ++d) {
    float sum[RUN] = {};
    for (int64_t r = 0; r < q.runs; ++r) {
      float* codeword = table + (r * q.dim + d) * RUN;
      const int64_t count = q.codewords - r * RUN < RUN ? q.codewords - r * RUN : RUN;
      for (int64_t j = 0; j < count; ++j) codeword[j] = codebook[(r * RUN + j) * q.dim + d], sum[j] += codeword[j];
      for (int64_t j = count; j < RUN; ++j) codeword[j] = INF;
    }
    for (int64_t j = 1; j < RUN; ++j) sum[0] += sum[j];
    if (q.filtered) mean[d] = sum[0] / float(q.codewords);  // rounded sums will do
  }
  for (int64_t r = 0; q.filtered && r < q.runs; ++r) {
    float* value = filter + r * (q.dim + 1) * RUN;
    double square[RUN] = {};
    for (int64_t d = 0; d < q.dim; ++d)
      for (int64_t j = 0; j < RUN; ++j) {
        const float codeword = table[(r * q.dim + d) * RUN + j], centered = codeword - mean[d];
        value[d * RUN + j] = codeword < INF ? -centered : 0;
        square[j] += double(centered) * centered;  // infinite for padding
      }
    for (int64_t j = 0; j < RUN; ++j) value[q.dim * RUN + j] = float(square[j] / 2);
  }
}

// Probable runs of the pixels of a block, D up to SMALL, and bits of the pixels for which they are certain.
//
// With u = 2^-24 and everything taken from the mean, a value is wrong by at most (D + 4) u (|z|^2 + |c|^2), which is at
// most (D + 4) u (3 |z|^2 + 2 |z - c|^2), and a distance by (D + 3) u |z - c|^2. Both together cannot change the order of
// two codewords whose values differ by more than (6 D + 24) u |z|^2 + (5 D + 19) u |z - c|^2, with the nearer c.
template <int D>
unsigned filter_runs(const float* x, const float* table, int64_t runs, float* best_run) {
  constexpr float U = 1.0f / (1 << 24), TINY = 1e-30f, HUGE = 1e30f;  // for underflow and overflow
  const float* filter = table + runs * D * RUN;
  const float* mean = filter + runs * (D + 1) * RUN;
  unsigned certain = 0;
  constexpr int P = D <= 4 || REGISTERS < 32 ? VECTORS : VECTORS / 2;
  for (int first = 0; first < VECTORS; first += P) {
    Vec z[D][P], best[P], second[P], id[P];
    for (int d = 0; d < D; ++d)
      for (int p = 0; p < P; ++p) z[d][p] = load(x + d * BLOCK + (first + p) * LANES) - uniform(mean[d]);
    for (int p = 0; p < P; ++p) best[p] = second[p] = uniform(INF), id[p] = uniform(0);
    const float* codeword = filter;
    for (int64_t r = 0; r < runs; ++r, codeword += (D + 1) * RUN) {
      Vec low[P];
      for (int p = 0; p < P; ++p) low[p] = uniform(INF);
#pragma GCC unroll 8
      for (int j = 0; j < RUN; ++j) {
        Vec value[P];
        for (int p = 0; p < P; ++p) value[p] = uniform(codeword[D * RUN + j]);
        for (int d = 0; d < D; ++d) {
          const Vec c = uniform(codeword[d * RUN + j]);
          for (int p = 0; p < P; ++p) value[p] = multiply_add(z[d][p], c, value[p]);
        }
        for (int p = 0; p < P; ++p) low[p] = minimum(value[p], low[p]);
      }
      for (int p = 0; p < P; ++p) {
        second[p] = minimum(maximum(low[p], best[p]), second[p]);
        id[p] = select(less(low[p], best[p]), uniform(float(r)), id[p]);
        best[p] = minimum(low[p], best[p]);
      }
    }
    for (int p = 0; p < P; ++p) {
      Vec square = z[0][p] * z[0][p];
      for (int d = 1; d < D; ++d) square = add_square(z[d][p], square);
      const Vec distance = maximum(best[p] + best[p] + square, uniform(0));
      const Vec lead = multiply_add(square + distance, uniform((6 * D + 32) * U), uniform(TINY));
      const unsigned clear = less_bits(best[p] + lead, second[p]) & less_bits(square, uniform(HUGE));  // never for NaN
      certain |= clear << ((first + p) * LANES);
      store(best_run + (first + p) * LANES, id[p]);
    }
  }
  return certain;
}

// The same for any D: a tile of codewords by vectors of pixels, in chunks of dimensions.
void find_runs_any(
    const float* x, const float* table, int64_t dim, int64_t runs, float* best_distance, float* best_run) {
  constexpr int J = 2, P = VECTORS;
  Vec best[P], id[P];
  for (int p = 0; p < P; ++p) best[p] = uniform(INF), id[p] = uniform(0);
  for (int64_t r = 0; r < runs; ++r) {
    Vec low[P];
    for (int p = 0; p < P; ++p) low[p] = uniform(INF);
    for (int j0 = 0; j0 < RUN; j0 += J) {
      Vec sum[J][P];
      for (int j = 0; j < J; ++j)
        for (int p = 0; p < P; ++p) sum[j][p] = uniform(0);
      for (int64_t start = 0; start < dim; start += CHUNK) {
        const int64_t stop = start + CHUNK < dim ? start + CHUNK : dim;
        Vec part[J][P];
        for (int j = 0; j < J; ++j)
          for (int p = 0; p < P; ++p) part[j][p] = uniform(0);
        for (int64_t d = start; d < stop; ++d) {
          const float* codeword = table + (r * dim + d) * RUN + j0;
          Vec z[P];
          for (int p = 0; p < P; ++p) z[p] = load(x + d * BLOCK + p * LANES);
          for (int j = 0; j < J; ++j) {
            const Vec c = uniform(codeword[j]);
            for (int p = 0; p < P; ++p) part[j][p] = add_square(z[p] - c, part[j][p]);
          }
        }
        for (int j = 0; j < J; ++j)
          for (int p = 0; p < P; ++p) sum[j][p] = sum[j][p] + part[j][p];
      }
      for (int j = 0; j < J; ++j)
        for (int p = 0; p < P; ++p) low[p] = minimum(sum[j][p], low[p]);
    }
    for (int p = 0; p < P; ++p) {
      id[p] = select(less(low[p], best[p]), uniform(float(r)), id[p]);
      best[p] = minimum(low[p], best[p]);
    }
  }
  for (int p = 0; p < P; ++p) {
    store(best_distance + p * LANES, best[p]);
    store(best_run + p * LANES, id[p]);
  }
}

// Lowest codeword of a run at exactly `distance` from the pixel x[0], x[BLOCK], ...; 0 if there is none (NaN).
inline int64_t find_in_run(
    const float* x, const float* table, int64_t dim, int64_t codewords, int64_t run, float distance) {
  const float* codeword = table + run * dim * RUN;
  unsigned bits = 0;
  for (int v = 0; v < RUN; v += LANES) {
    Vec sum = uniform(0);
    if (dim == 1) {
      sum = magnitude(uniform(x[0]) - load(codeword + v));
    } else {
      for (int64_t start = 0; start < dim; start += CHUNK) {
        const int64_t stop = start + CHUNK < dim ? start + CHUNK : dim;
        Vec part = uniform(0);
        for (int64_t d = start; d < stop; ++d)
          part = add_square(uniform(x[d * BLOCK]) - load(codeword + d * RUN + v), part);
        sum = sum + part;
      }
    }
    bits |= equal_bits(sum, uniform(distance)) << v;
  }
  const int64_t index = bits ? run * RUN + __builtin_ctz(bits) : 0;
  return index < codewords ? index : 0;  // padding ties with real codewords only if those are not finite
}

// Lowest of the nearest codewords in runs from `run` to before `stop`; 0 if no distance is finite. D from 2 to SMALL.
template <int D>
int64_t nearest_in_runs(const float* x, const float* table, int64_t run, int64_t stop) {
  constexpr int WIDTH = RUN / LANES;
  Vec z[D];
  for (int d = 0; d < D; ++d) z[d] = uniform(x[d * BLOCK]);
  float least = INF;
  int64_t index = 0;
  for (; run < stop; ++run) {
    const float* codeword = table + run * D * RUN;
    Vec distance[WIDTH], low = uniform(INF);
    for (int v = 0; v < WIDTH; ++v) {
      distance[v] = z[0] - load(codeword + v * LANES);
      distance[v] = distance[v] * distance[v];
      for (int d = 1; d < D; ++d)
        distance[v] = add_square(z[d] - load(codeword + d * RUN + v * LANES), distance[v]);
      low = minimum(distance[v], low);
    }
    const float lowest_of_run = lowest(low);
    if (!(lowest_of_run < least)) continue;
    unsigned bits = 0;
    for (int v = 0; v < WIDTH; ++v) bits |= equal_bits(distance[v], uniform(lowest_of_run)) << (v * LANES);
    least = lowest_of_run, index = run * RUN + __builtin_ctz(bits);
  }
  return index;
}

template <int D>
void find_codewords(const float* x, const float* table, const Problem& q, int64_t* indices, int count) {
  float distance[BLOCK], run[BLOCK];
  if constexpr (D >= 2) {
    const unsigned certain = q.filtered ? filter_runs<D>(x, table, q.runs, run) : 0;
    const bool loose = __builtin_popcount(certain) < BLOCK / 4 * 3;  // all pixels at a time are faster than one by one
    if (loose) find_runs<D>(x, table, q.runs, distance, run);
    for (int i = 0; i < count; ++i) {
      const bool known = loose || certain >> i & 1;
      const int64_t first = known ? int64_t(run[i]) : 0;
      indices[i] = nearest_in_runs<D>(x + i, table, first, known ? first + 1 : q.runs);
    }
    return;
  }
  if constexpr (D == 1)
    find_runs<D>(x, table, q.runs, distance, run);
  else
    find_runs_any(x, table, q.dim, q.runs, distance, run);
  for (int i = 0; i < count; ++i)
    indices[i] = find_in_run(x + i, table, D == 1 ? 1 : q.dim, q.codewords, int64_t(run[i]), distance[i]);
}

using Find = void (*)(const float*, const float*, const Problem&, int64_t*, int);

Find find_for(int64_t dim) {
  switch (dim) {
    case 1: return find_codewords<1>;
    case 2: return find_codewords<2>;
    case 3: return find_codewords<3>;
    case 4: return find_codewords<4>;
    case 5: return find_codewords<5>;
    case 6: return find_codewords<6>;
    case 7: return find_codewords<7>;
    case 8: return find_codewords<8>;
    default: return find_codewords<0>;
  }
}

#include "classified.h"

// Codewords of `count` pixels from n on, where they are wanted.
void write_codewords(const Problem& q, int64_t s, int64_t b, int64_t n, int64_t count) {
  if (!q.z_q) return;
  const int64_t* indices = q.indices + (b * q.subspaces + s) * q.positions + n;
  const float* z = q.z + b * q.strides[0] + s * q.strides[1] + n * q.strides[3];
  const float* codebook = q.codebooks + s * q.codewords * q.dim;
  for (int64_t d = 0; d < q.dim; ++d) {
    const float* row = z + d * q.strides[2];
    float* plane = q.z_q + ((b * q.subspaces + s) * q.dim + d) * q.positions + n;
    for (int64_t i = 0; i < count; ++i) {
      const float value = row[i * q.strides[3]];
      plane[i] = value == value ? codebook[indices[i] * q.dim + d] : value;  // NaN stays visible
    }
  }
}

// Indices and codewords of at most BLOCK pixels from n on.
void search_block(const Problem& q, Find find, float* x, int64_t s, int64_t b, int64_t n) {
  const int count = int(q.positions - n < BLOCK ? q.positions - n : BLOCK);
  const float* z = q.z + b * q.strides[0] + s * q.strides[1] + n * q.strides[3];
  for (int64_t d = 0; d < q.dim; ++d) {
    const float* plane = z + d * q.strides[2];
    float* row = x + d * BLOCK;
    if (q.strides[3] == 1)
      for (int i = 0; i < count; ++i) row[i] = plane[i];
    else
      for (int i = 0; i < count; ++i) row[i] = plane[i * q.strides[3]];
    for (int i = count; i < BLOCK; ++i) row[i] = 0;
  }
  find(x, q.table + s * q.stride, q, q.indices + (b * q.subspaces + s) * q.positions + n, count);
  write_codewords(q, s, b, n, count);
}

// Uses of every codeword of subspace s, sums of residuals z - c, and squared error: pixels n to stop of image b.
void accumulate(const Problem& q, int64_t s, int64_t b, int64_t n, int64_t stop) {
  const int64_t* indices = q.indices + (b * q.subspaces + s) * q.positions;
  const float* z = q.z + b * q.strides[0] + s * q.strides[1];
  const float* z_q = q.z_q + (b * q.subspaces + s) * q.dim * q.positions;
  int32_t* counts = q.counts + s * q.codewords;
  float* sums = q.residual_sums + s * q.codewords * q.dim;
  for (int64_t i = n; i < stop; ++i) ++counts[indices[i]];
  double squared = 0;
  for (int64_t d = 0; d < q.dim; ++d) {
    float part = 0;
    for (int64_t i = n; i < stop; ++i) {
      const float residual = z[d * q.strides[2] + i * q.strides[3]] - z_q[d * q.positions + i];
      sums[indices[i] * q.dim + d] += residual;
      part += residual * residual;
    }
    squared += part;
  }
  q.squared_errors[s] += squared;
}

#if defined(__AVX2__) && defined(__FMA__)

bool is_wide(const int64_t* sizes) { return sizes[2] >= WIDE && sizes[2] <= wide::LARGEST_DIM; }

int64_t wide_floats(const int64_t* sizes, int threads) {
  const wide::Sizes size(sizes[2], sizes[4]);
  return size.shared(sizes[0] * sizes[3]) + threads * size.of_a_thread();
}

// Subspace after subspace and tile after tile of its codewords; the threads share the vectors.
void search_wide(const Problem& q, float* memory, int threads) {
  const wide::Sizes size(q.dim, q.codewords);
  const int64_t blocks = (q.positions + wide::BLOCK - 1) / wide::BLOCK;
  int8_t* table = reinterpret_cast<int8_t*>(memory);
  float* next = memory + size.tile * (size.padded_dim / 4);
  wide::Codewords kept{next, next + size.tile, next + 2 * size.tile, next + 3 * size.tile,
                       reinterpret_cast<int32_t*>(next + 4 * size.tile)};
  float* mean = next + 5 * size.tile;
  float* scratch = mean + size.padded_dim;
  float* best = scratch + threads * size.of_a_thread();  // (B, N)

#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
#ifdef _OPENMP
    float* x = scratch + omp_get_thread_num() * size.of_a_thread();
#else
    float* x = scratch;
#endif
    float* work = x + wide::BLOCK * size.padded_dim;
    for (int64_t s = 0; s < q.subspaces; ++s) {
      const float* codebook = q.codebooks + s * q.codewords * q.dim;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
      for (int64_t d = 0; d < size.padded_dim; d += wide::STEP) {
        const int64_t width = q.dim - d < wide::STEP ? q.dim - d : wide::STEP;
        float total[wide::STEP] = {};  // rounded sums will do: the distances do not depend on the mean
        if (width == wide::STEP)
          for (int64_t k = 0; k < q.codewords; ++k)
            for (int64_t i = 0; i < wide::STEP; ++i) total[i] += codebook[k * q.dim + d + i];
        else
          for (int64_t k = 0; k < q.codewords; ++k)
            for (int64_t i = 0; i < width; ++i) total[i] += codebook[k * q.dim + d + i];
        for (int64_t i = 0; i < wide::STEP; ++i) mean[d + i] = total[i] / float(q.codewords);
      }
      for (int64_t first = 0; first < q.codewords; first += size.tile) {
        const int64_t codewords = q.codewords - first < size.tile ? q.codewords - first : size.tile;
        const float* tile = codebook + first * q.dim;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t k = 0; k < codewords; k += wide::GROUP)
          wide::prepare_group(tile, mean, size, k, codewords, work, table, kept);
        float largest_norm = 0;
        for (int64_t k = 0; k < codewords; ++k) largest_norm = kept.norm[k] > largest_norm ? kept.norm[k] : largest_norm;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t task = 0; task < q.batch * blocks; ++task) {
          const int64_t b = task / blocks, n = task % blocks * wide::BLOCK;
          const int count = int(q.positions - n < wide::BLOCK ? q.positions - n : wide::BLOCK);
          const float* z = q.z + b * q.strides[0] + s * q.strides[1] + n * q.strides[3];
          for (int64_t d = 0; d < size.padded_dim; d += wide::STEP) {  // few planes at a time: they lie far apart
            const int64_t width = q.dim - d < wide::STEP ? q.dim - d : wide::STEP;
            int i = 0;
            for (; q.strides[3] == 1 && width == wide::STEP && i + 8 <= count; i += 8)
              wide::transpose(z + d * q.strides[2] + i, q.strides[2], x + i * size.padded_dim + d, size.padded_dim);
            for (; i < count; ++i) {
              float* row = x + i * size.padded_dim + d;
              for (int64_t j = 0; j < width; ++j) row[j] = z[(d + j) * q.strides[2] + i * q.strides[3]];
              for (int64_t j = width; j < wide::STEP; ++j) row[j] = 0;
            }
          }
          int64_t* indices = q.indices + (b * q.subspaces + s) * q.positions + n;
          float* least = best + b * q.positions + n;
          for (int i = 0; first == 0 && i < count; ++i) indices[i] = 0, least[i] = INF;
          wide::search_tile(
              x, count, mean, tile, first, codewords, largest_norm, table, kept, size, work, least, indices);
        }
      }
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
      for (int64_t b = 0; b < q.batch; ++b) write_codewords(q, s, b, 0, q.positions);
#ifdef _OPENMP
#pragma omp single
#endif
      for (int64_t b = 0; q.counts && b < q.batch; ++b)
        for (int64_t n = 0; n < q.positions; n += BLOCK)
          accumulate(q, s, b, n, n + BLOCK < q.positions ? n + BLOCK : q.positions);
    }
  }
}

#else

bool is_wide(const int64_t*) { return false; }
int64_t wide_floats(const int64_t*, int) { return 0; }
void search_wide(const Problem&, float*, int) {}

#endif

}  // namespace

// Floats of memory that a search takes beside what it is given.
extern "C" int64_t pqdiff_scratch(const int64_t* sizes, int threads) {
  if (is_wide(sizes)) return wide_floats(sizes, threads);
  Problem q{};
  q.dim = sizes[2], q.codewords = sizes[4];
  prepare(q, sizes[0] * sizes[3]);
  return sizes[1] * q.stride + threads * q.dim * BLOCK;
}

// Fills indices, and unless they are null z_q, counts, residual_sums and squared_errors (all zero before, and only
// together with z_q). 0 on success, 1 if memory is short. The result does not depend on the number of threads.
extern "C" int pqdiff_search(
    const float* z, const int64_t* strides, const int64_t* sizes, const float* codebooks, int64_t* indices, float* z_q,
    int32_t* counts, float* residual_sums, double* squared_errors, int threads) {
  Problem q{z, strides, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], codebooks, indices, z_q, counts,
            residual_sums, squared_errors};
  prepare(q, q.batch * q.positions);
  const int64_t scratch_floats = q.dim * BLOCK;
  float* memory = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&memory), 64, sizeof(float) * pqdiff_scratch(sizes, threads))) return 1;
  if (is_wide(sizes)) {
    search_wide(q, memory, threads);
    free(memory);
    return 0;
  }
  float* table = memory;
  q.table = table;
  const Find find = find_for(q.dim);
  const int64_t blocks = (q.positions + BLOCK - 1) / BLOCK;
  // Whole subspaces per thread, statistics at once while the data are in cache; if subspaces are too few, single blocks.
  const bool whole = q.subspaces >= 4 * threads || threads == 1;
  const int64_t tasks = whole ? q.subspaces : q.subspaces * q.batch * blocks;

#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
#ifdef _OPENMP
    float* x = memory + q.subspaces * q.stride + omp_get_thread_num() * scratch_floats;
#else
    float* x = memory + q.subspaces * q.stride;
#endif
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (int64_t s = 0; s < q.subspaces; ++s) fill_table(q, s, table + s * q.stride);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (int64_t task = 0; task < tasks; ++task) {
      if (whole) {
        for (int64_t b = 0; b < q.batch; ++b)
          for (int64_t n = 0; n < q.positions; n += BLOCK) {
            search_block(q, find, x, task, b, n);
            if (counts) accumulate(q, task, b, n, n + BLOCK < q.positions ? n + BLOCK : q.positions);
          }
      } else {
        search_block(q, find, x, task / (q.batch * blocks), task / blocks % q.batch, task % blocks * BLOCK);
      }
    }
    if (!whole && counts) {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
      for (int64_t s = 0; s < q.subspaces; ++s)
        for (int64_t b = 0; b < q.batch; ++b)
          for (int64_t n = 0; n < q.positions; n += BLOCK)  // the same order of sums as above
            accumulate(q, s, b, n, n + BLOCK < q.positions ? n + BLOCK : q.positions);
    }
  }
  free(memory);
  return 0;
}

// Fills tokens (S, N) of N vectors, from sizes = (N, candidates, bases, K, S - 1, codewords, D). Classes must be below K.
// 0 on success, 1 if memory is short. The result does not depend on the number of threads.
extern "C" int pqdiff_classify(
    const float* everywhere, const float* outside, const int64_t* classes, const float* scales, const float* codebooks,
    const int64_t* sizes, int64_t* tokens, int threads) {
  const classified::Vectors v{everywhere, outside,  classes,  scales,
                              sizes[0],   sizes[1], sizes[2], sizes[3] / sizes[2], tokens};
  Problem q{};
  q.subspaces = sizes[4], q.codewords = sizes[5], q.dim = sizes[6], q.codebooks = codebooks;
  prepare(q, v.number * v.candidates);
  const classified::Sizes size(v.candidates);
  const int64_t table_bytes = sizeof(float) * q.subspaces * q.stride, width = q.subspaces * q.dim;
  const int64_t thread_bytes =
      (sizeof(int64_t) * size.indices(q) + sizeof(float) * (size.relative(q) + width) + 63) / 64 * 64;
  char* memory = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&memory), 64, table_bytes + threads * thread_bytes)) return 1;
  float* table = reinterpret_cast<float*>(memory);
  q.table = table;
  const Find find = find_for(q.dim);
  const int64_t groups = (v.number + size.vectors - 1) / size.vectors;

#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
#ifdef _OPENMP
    char* mine = memory + table_bytes + omp_get_thread_num() * thread_bytes;
#else
    char* mine = memory + table_bytes;
#endif
    int64_t* indices = reinterpret_cast<int64_t*>(mine);
    float* relative = reinterpret_cast<float*>(indices + size.indices(q));
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (int64_t s = 0; s < q.subspaces; ++s) fill_table(q, s, table + s * q.stride);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * size.vectors;
      const int64_t count = v.number - first < size.vectors ? v.number - first : size.vectors;
      classified::search_group(v, q, find, size, first, count, relative, indices, relative + size.relative(q));
    }
  }
  free(memory);
  return 0;
}
