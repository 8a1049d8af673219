// Nearest codewords of a block of pixels in one subspace.
//
// A block of pixels stays in vector registers, one pixel a lane, while the codewords stream by as uniform values. Over
// a run of 16 codewords only the minimum is kept; the winning run of each pixel is then scanned once more, one codeword
// a lane. The distances that decide are sums of (z - c)^2, never the expanded square: nothing cancels, wherever the data
// lie. Padding codewords are infinite and can never win.
//
// For few dimensions, half the arithmetic finds the winning run: |c|^2 / 2 - z c, around the mean of the codewords. These
// values are rounded otherwise than distances, so a run wins only if all others are behind by more than all rounding can
// explain. Pixels for which that is not so are searched by distances.

#pragma once

#include "vectors.h"

namespace {

constexpr int RUN = 16;                        // codewords whose minimum is kept in place of their indices
constexpr int CHUNK = 16;                      // terms summed one by one; chunks are summed in turn: less rounding
constexpr int VECTORS = REGISTERS / 8;         // pixels in flight, in vectors
constexpr int BLOCK = VECTORS * LANES;         // pixels in flight
constexpr int SMALL = 8;                       // dimensions up to which a pixel stays in registers
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
    if (!q.filtered) continue;
    for (int64_t j = 1; j < RUN; ++j) sum[0] += sum[j];
    mean[d] = sum[0] / float(q.codewords);  // rounded sums will do
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
uint64_t filter_runs(const float* x, const float* table, int64_t runs, float* best_run) {
  constexpr float U = 1.0f / (1 << 24);
  constexpr float TINY = 1e-30f, LARGEST_SQUARE = 1e30f;  // for underflow and overflow
  const float* filter = table + runs * D * RUN;
  const float* mean = filter + runs * (D + 1) * RUN;
  uint64_t certain = 0;
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
      const uint64_t clear = less_bits(best[p] + lead, second[p]) & less_bits(square, uniform(LARGEST_SQUARE));  // not NaN
      certain |= clear << ((first + p) * LANES);
      store(best_run + (first + p) * LANES, id[p]);
    }
  }
  return certain;
}

// What find_runs does, for any D: a tile of codewords by vectors of pixels, in chunks of dimensions.
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
    const uint64_t certain = q.filtered ? filter_runs<D>(x, table, q.runs, run) : 0;
    const bool loose = __builtin_popcountll(certain) < BLOCK / 4 * 3;  // all pixels at a time are faster than one by one
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
    indices[i] = find_in_run(x + i, table, q.dim, q.codewords, int64_t(run[i]), distance[i]);
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

}  // namespace
