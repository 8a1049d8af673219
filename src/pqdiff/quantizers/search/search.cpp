// Search for product quantizers, exact in fp32, and what they need for their backward pass: the functions that Python calls.
//
// codewords.h searches a block of pixels. From WIDE dimensions on, integers rule out most codewords first: wide.h. Classes
// of vectors: classified.h.
//
// No -ffast-math: NaN, infinities and ties are defined. vectors.h names every fused multiply-add, and the build forbids
// others, or two scans could round differently.

#include <cstdlib>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "classified.h"
#if defined(__AVX2__) && defined(__FMA__)
#include "wide.h"
#endif

namespace {

int64_t thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

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

constexpr int WIDE = 24;  // dimensions from which integers are faster

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
    float* x = scratch + thread_number() * size.of_a_thread();
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
    float* x = memory + q.subspaces * q.stride + thread_number() * q.dim * BLOCK;
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
    char* mine = memory + table_bytes + thread_number() * thread_bytes;
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
