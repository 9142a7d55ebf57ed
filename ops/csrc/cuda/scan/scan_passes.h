// The two passes of the scan along the heavy paths, for one or two signals with the same decay.
//
// First every row of the sums gets the vertex's own signal. A few threads take a chunk of entries, each thread a vector
// of channels. On a path every vertex depends on the one before it through the linear recurrence x <- b + a x alone, so
// the pieces of a long path are scanned like any chunked recurrence: a local scan of each piece from 0, a scan of the
// carries between pieces, and a correction. The correction scans the piece again from its carry, because the results of
// the local scan are not kept.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/common/vector.h"
#include "cuda/scan/heavy_light.h"

namespace grootv {

// Entries whose inputs are loaded ahead of the recurrence: a whole chunk if registers hold them.
template <class Group, int SIGNALS>
constexpr int ENTRIES_AHEAD = Group::IS_BLOCK ? 8 : 8 / SIGNALS;
constexpr int CARRIES_AHEAD = 8;

// A grid's rows, which it keeps in memory, take registers too.
template <class Group>
constexpr int BLOCK_THREADS = Group::IS_BLOCK ? SCAN_THREADS : SCAN_THREADS / 2;

// How a launch divides the channels: a tile is a vector for each of a few threads, at most 32 channels together.
struct TileLayout {
    int32_t channels;
    int32_t threads;       // of a tile: a power of two
    int32_t first, count;  // the tiles of this launch
};

// A thread's channels, and the tasks it has in common with the other threads of its tile. The blocks of a grid group
// divide the chunks of a tile among them, a block group has one block. The threads of a warp stay together: one that
// has nothing to do repeats another's work, but is not `live` and does not store.
template <class Group, class acc_t>
struct ChannelTile {
    __device__ explicit ChannelTile(const TileLayout& layout)
        : index(layout.first + static_cast<int32_t>(blockIdx.x) % layout.count),
          block(static_cast<int32_t>(blockIdx.x) / layout.count),
          threads(layout.threads),
          rank(static_cast<int32_t>(threadIdx.x) % threads),
          channels(layout.channels),
          channel((index * threads + rank) * VECTOR_SIZE<acc_t>) {
        const auto tasks_of_block = static_cast<int32_t>(blockDim.x) / threads;
        const auto task_of_block = static_cast<int32_t>(threadIdx.x) / threads;
        task = Group::IS_BLOCK ? task_of_block : block * tasks_of_block + task_of_block;
        tasks = Group::IS_BLOCK ? tasks_of_block : static_cast<int32_t>(gridDim.x) / layout.count * tasks_of_block;
        exists = channel < channels;
        if (!exists) channel = channels - VECTOR_SIZE<acc_t>;
    }

    // Calls run(i, live) for this thread's share of i = begin ... end - 1.
    template <class Run>
    __device__ void for_each(int64_t begin, int64_t end, Run run) const {
        const int32_t in_warp = task % (WARP / threads);
        for (int64_t first = begin + task - in_warp; first < end; first += tasks) {
            const int64_t i = first + in_warp;
            run(i < end ? i : end - 1, exists && i < end);
        }
    }

    // The same for tasks that load and then use, in no order: the loads of a few come before the first use.
    template <class Load, class Use>
    __device__ void for_each_ahead(int64_t begin, int64_t end, Load load, Use use) const {
        constexpr int COUNT = 4;
        const int32_t in_warp = task % (WARP / threads);
        for (int64_t first = begin + task; first - in_warp < end; first += int64_t{COUNT} * tasks) {
            decltype(load(first)) loaded[COUNT];
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                const int64_t i = first + int64_t{j} * tasks;
                loaded[j] = load(i < end ? i : end - 1);
            }
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                const int64_t i = first + int64_t{j} * tasks;
                if (exists && i < end) use(i, loaded[j]);
            }
        }
    }

    __device__ int64_t at(int32_t row) const { return int64_t{row} * channels + channel; }

    int32_t index, block;  // block: of those of the tile; of a block group the item
    int32_t threads, rank, task, tasks;
    int32_t channels, channel;
    bool exists;
};

template <class acc_t, int SIGNALS>
struct Vectors {
    Vector<acc_t> signal[SIGNALS];
};

// Sums of all vertices, and the carries of the pieces of long paths. A block keeps the sums in shared memory.
template <class Group, class acc_t, int SIGNALS>
struct Totals {
    acc_t* rows[SIGNALS];  // (vertices of the batch, channels) each; of a grid
    acc_t* carry[SIGNALS];
    acc_t* product;
    int32_t vertices;  // of an item

    static int64_t shared_bytes(int64_t vertices, int64_t threads) {
        return SIGNALS * vertices * threads * static_cast<int64_t>(sizeof(Vector<acc_t>));
    }

    __device__ Vector<acc_t>& at(int k, int32_t row, const ChannelTile<Group, acc_t>& tile) const {
        if constexpr (Group::IS_BLOCK) {
            const int32_t local = (k - tile.block) * vertices + row;
            return reinterpret_cast<Vector<acc_t>*>(shared_memory())[local * tile.threads + tile.rank];
        } else {
            return as_vector(rows[k] + tile.at(row));
        }
    }

    __device__ Vectors<acc_t, SIGNALS> load(int32_t row, const ChannelTile<Group, acc_t>& tile) const {
        Vectors<acc_t, SIGNALS> vectors;
        for (int k = 0; k < SIGNALS; ++k) vectors.signal[k] = at(k, row, tile);
        return vectors;
    }
    __device__ void store(int32_t row, const ChannelTile<Group, acc_t>& tile,
                          const Vectors<acc_t, SIGNALS>& vectors) const {
        for (int k = 0; k < SIGNALS; ++k) at(k, row, tile) = vectors.signal[k];
    }
    __device__ void add(int32_t row, const ChannelTile<Group, acc_t>& tile,
                        const Vectors<acc_t, SIGNALS>& vectors) const {
        for (int k = 0; k < SIGNALS; ++k) {
            Vector<acc_t>& sum = at(k, row, tile);
            sum = map<acc_t>([](auto sum, auto more) { return sum + more; }, sum, vectors.signal[k]);
        }
    }

    // Rows in shared memory are near enough to be loaded when they are used, which takes no registers ahead.
    struct None {};
    using Ahead = std::conditional_t<Group::IS_BLOCK, None, Vectors<acc_t, SIGNALS>>;
    __device__ Ahead load_ahead(int32_t row, const ChannelTile<Group, acc_t>& tile, bool live) const {
        if constexpr (Group::IS_BLOCK)
            return {};
        else
            return live ? load(row, tile) : Ahead{};
    }
    __device__ Vectors<acc_t, SIGNALS> loaded(const Ahead& ahead, int32_t row, const ChannelTile<Group, acc_t>& tile,
                                              bool live) const {
        if constexpr (Group::IS_BLOCK)
            return live ? load(row, tile) : Vectors<acc_t, SIGNALS>{};
        else
            return ahead;
    }
};

// The decays of all vertices and channels.
template <class Group, class acc_t, class decay_t>
struct Decays {
    const ChannelTile<Group, acc_t>& tile;
    const decay_t* decays;

    __device__ Vector<decay_t> load(int32_t row, bool live) const {
        return live ? as_vector(decays + tile.at(row)) : Vector<decay_t>{};
    }
};

// Calls use(entry, loaded, in_chunk, live) for the entries of a chunk, from its end up or from its start down, with
// loaded = load(entry, live). The loads of COUNT entries come before the first use, so that none waits for another;
// beyond the end of the chunk its last entry is loaded again. Threads that have nothing to do leave, or stay TOGETHER
// with their warp and are not live.
template <bool UP, bool TOGETHER, int COUNT, class Load, class Use>
__device__ void for_each_entry(const PathEntry* entries, const Chunk& chunk, bool live, Load load, Use use) {
    const int32_t length = chunk.end - chunk.first;
    auto more = [=](int32_t begin) { return TOGETHER ? __any_sync(~0u, begin < length) : live && begin < length; };
    for (int32_t begin = 0; more(begin); begin += COUNT) {
        const bool active = !TOGETHER || (live && begin < length);
        PathEntry entry[COUNT];
        decltype(load(entry[0], active)) loaded[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            const int32_t place = begin + j < length ? begin + j : length - 1;
            entry[j] = entries[UP ? chunk.end - 1 - place : chunk.first + place];
        }
#pragma unroll
        for (int j = 0; j < COUNT; ++j) loaded[j] = load(entry[j], active);
#pragma unroll
        for (int j = 0; j < COUNT; ++j) use(entry[j], loaded[j], begin + j < length, active);
    }
}

// The state of the recurrence within a chunk: x of the last vertex, and the product of the decays since its start.
template <class acc_t, int SIGNALS>
struct ChunkState {
    Vectors<acc_t, SIGNALS> x{};
    Vector<acc_t> product = filled(acc_t{1});
};

// Scan of carries: replaces the results of the local scans of a light depth's long paths by the carries into the
// pieces. The signals of a path are tasks of their own.
template <bool UP, class Group, class acc_t, int SIGNALS>
__device__ void scan_carries(const HeavyLight::Lists& lists, int light_depth, const ChannelTile<Group, acc_t>& tile,
                             const Totals<Group, acc_t, SIGNALS>& totals) {
    constexpr int COUNT = CARRIES_AHEAD;
    const int32_t* begins = lists.begins->long_paths + light_depth;
    tile.for_each(SIGNALS * begins[0], SIGNALS * begins[1], [&](int64_t i, bool live) {
        if (!live) return;
        const LongPath path = lists.long_paths[i / SIGNALS];
        acc_t* const carries = i % SIGNALS == 0 ? totals.carry[0] : totals.carry[SIGNALS - 1];
        Vector<acc_t> carry{};
        for (int32_t begin = 0; begin < path.count; begin += COUNT) {
            Vector<acc_t> x[COUNT], product[COUNT];
            int64_t at[COUNT];
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                const int32_t piece = begin + j < path.count ? begin + j : path.count - 1;
                at[j] = tile.at(path.carry + (UP ? path.count - 1 - piece : piece));
                x[j] = as_vector(carries + at[j]);
                product[j] = as_vector(totals.product + at[j]);
            }
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if (begin + j < path.count) as_vector(carries + at[j]) = carry;
                carry = map<acc_t>([](auto product, auto carry, auto x) { return std::fma(product, carry, x); },
                                   product[j], carry, x[j]);
            }
        }
    });
}

// Scans the chunks of a light depth by scan_chunk(chunk, live, state, is_final).
template <bool UP, class Group, class acc_t, int SIGNALS, class ScanChunk>
__device__ void scan_light_depth(const HeavyLight::Lists& lists, int light_depth, const ChannelTile<Group, acc_t>& tile,
                                 const Totals<Group, acc_t, SIGNALS>& totals, ScanChunk scan_chunk) {
    const int32_t begin = lists.begins->chunks[light_depth], end = lists.begins->chunks[light_depth + 1];
    const int32_t pieces_end = lists.begins->short_paths[light_depth];
    if (begin < pieces_end) {
        tile.for_each(begin, pieces_end, [&](int64_t i, bool live) {
            const Chunk chunk = lists.chunks[i];
            ChunkState<acc_t, SIGNALS> state;
            scan_chunk(chunk, live, state, std::false_type{});
            if (!live) return;
            const int64_t at = tile.at(chunk.carry);
            for (int k = 0; k < SIGNALS; ++k) as_vector(totals.carry[k] + at) = state.x.signal[k];
            as_vector(totals.product + at) = state.product;
        });
        Group::sync();
        scan_carries<UP>(lists, light_depth, tile, totals);
        Group::sync();
    }
    tile.for_each(begin, end, [&](int64_t i, bool live) {
        const Chunk chunk = lists.chunks[i];
        ChunkState<acc_t, SIGNALS> state;
        if (chunk.carry >= 0)
            for (int k = 0; k < SIGNALS; ++k) state.x.signal[k] = as_vector(totals.carry[k] + tile.at(chunk.carry));
        scan_chunk(chunk, live && chunk.first < chunk.end, state, std::true_type{});
    });
    if (begin < end) Group::sync();
}

// From the leaves to the root: the sums, which are the vertices' own signals before, become those of the subtrees, sum
// = signal + sum over children of decay * sum. finish(row, sum, live) receives them.
template <class Group, class acc_t, int SIGNALS, class decay_t, class Finish>
__device__ void up_pass(const HeavyLight::Lists& lists, const ChannelTile<Group, acc_t>& tile,
                        const Decays<Group, acc_t, decay_t>& decays, const Totals<Group, acc_t, SIGNALS>& totals,
                        Finish finish) {
    struct Loaded {
        Vector<decay_t> decay;
        typename Totals<Group, acc_t, SIGNALS>::Ahead row;
    };
    auto scan_chunk = [&](const Chunk& chunk, bool live, ChunkState<acc_t, SIGNALS>& state, auto is_final) {
        constexpr bool FINAL = decltype(is_final)::value;  // then the state is of no use beyond the chunk
        auto load = [&](PathEntry entry, bool live) {
            return Loaded{decays.load(entry.vertex(), live), totals.load_ahead(entry.vertex(), tile, live)};
        };
        auto use = [&](PathEntry entry, const Loaded& loaded, bool in_chunk, bool live) {
            const Vector<acc_t> decay = cast<acc_t>(loaded.decay);
            // The signal and what a light child has added to it, or a light child's own sum.
            const Vectors<acc_t, SIGNALS> row = totals.loaded(loaded.row, entry.vertex(), tile, live);
            const bool is_vertex = !entry.is_light_edge();
            Vectors<acc_t, SIGNALS> sum, next;
            for (int k = 0; k < SIGNALS; ++k) {
                const Vector<acc_t> below = entry.is_leaf() ? Vector<acc_t>{} : state.x.signal[k];
                sum.signal[k] = map<acc_t>([](auto row, auto below) { return row + below; }, row.signal[k], below);
                next.signal[k] =
                    map<acc_t>([=](auto decay, auto sum, auto row,
                                   auto below) { return is_vertex ? decay * sum : std::fma(decay, row, below); },
                               decay, sum.signal[k], row.signal[k], below);
            }
            if (FINAL || in_chunk) {
                state.x = next;
                if (is_vertex) state.product = state.product * decay;
            }
            if constexpr (FINAL) {
                const bool vertex_live = live && in_chunk && is_vertex;
                if (vertex_live) totals.store(entry.vertex(), tile, sum);
                if (vertex_live && entry.is_first_light_child()) totals.add(entry.parent(), tile, next);
                finish(entry.vertex(), sum, vertex_live);
            }
        };
        for_each_entry<true, false, ENTRIES_AHEAD<Group, SIGNALS>>(lists.entries, chunk, live, load, use);
    };
    for (int light_depth = HeavyLight::LIGHT_DEPTHS - 1; light_depth >= 0; --light_depth)
        scan_light_depth<true>(lists, light_depth, tile, totals, scan_chunk);
}

// From the root to the leaves: x = own + decay * x of the parent, with a decay of 0 at the root. source.load(row)
// returns what source.values(loaded, sums, decay) takes, which returns own; the totals are the sums and then get those
// results that light children need. finish.load(row) is loaded with it; finish(entry, loaded, sums, decay, x above, x,
// live) receives the results.
template <class Group, class acc_t, int SIGNALS, class decay_t, class Source, class Finish>
__device__ void down_pass(const HeavyLight::Lists& lists, const ChannelTile<Group, acc_t>& tile,
                          const Decays<Group, acc_t, decay_t>& decays, const Source& source,
                          const Totals<Group, acc_t, SIGNALS>& totals, Finish& finish) {
    using Ahead = typename Totals<Group, acc_t, SIGNALS>::Ahead;
    struct Loaded {
        Vector<decay_t> decay;
        Ahead sums, above;  // above: of a top
        typename Source::Loaded source;
        typename Finish::Loaded finish;
    };
    auto scan_chunk = [&](const Chunk& chunk, bool live, ChunkState<acc_t, SIGNALS>& state, auto is_final) {
        constexpr bool FINAL = decltype(is_final)::value;  // then the state is of no use beyond the chunk
        auto has_above = [](PathEntry entry, bool live) { return live && entry.is_top() && !entry.is_root(); };
        auto load = [&](PathEntry entry, bool live) {
            Loaded loaded{decays.load(entry.vertex(), live),
                          totals.load_ahead(entry.vertex(), tile, live),
                          totals.load_ahead(entry.parent(), tile, has_above(entry, live)),
                          source.load(entry.vertex()),
                          {}};
            if constexpr (FINAL) loaded.finish = finish.load(entry.vertex());
            return loaded;
        };
        auto use = [&](PathEntry entry, const Loaded& loaded, bool in_chunk, bool live) {
            const Vector<acc_t> decay = entry.is_root() ? Vector<acc_t>{} : cast<acc_t>(loaded.decay);
            const auto sums = totals.loaded(loaded.sums, entry.vertex(), tile, live);
            const auto given = totals.loaded(loaded.above, entry.parent(), tile, has_above(entry, live));
            const Vectors<acc_t, SIGNALS> own = source.values(loaded.source, sums, decay);
            const bool is_vertex = !entry.is_light_edge();
            Vectors<acc_t, SIGNALS> above, x;
            for (int k = 0; k < SIGNALS; ++k) {
                above.signal[k] = entry.is_top() ? given.signal[k] : state.x.signal[k];
                x.signal[k] = map<acc_t>([](auto decay, auto above, auto own) { return std::fma(decay, above, own); },
                                         decay, above.signal[k], own.signal[k]);
            }
            if ((FINAL || in_chunk) && is_vertex) {
                state.x = x;
                state.product = state.product * decay;
            }
            if constexpr (FINAL) {
                const bool vertex_live = live && in_chunk && is_vertex;
                if (vertex_live && entry.has_light_child()) totals.store(entry.vertex(), tile, x);
                finish(entry, loaded.finish, sums, decay, above, x, vertex_live);
            }
        };
        constexpr bool MORE = !std::is_empty_v<typename Source::Loaded> || !std::is_empty_v<typename Finish::Loaded>;
        constexpr int AHEAD = ENTRIES_AHEAD<Group, SIGNALS> / (MORE ? 2 : 1);
        for_each_entry<false, FINAL && Finish::BY_WARPS, AHEAD>(lists.entries, chunk, live, load, use);
    };
    for (int light_depth = 0; light_depth < HeavyLight::LIGHT_DEPTHS; ++light_depth)
        scan_light_depth<false>(lists, light_depth, tile, totals, scan_chunk);
}

// Calls put(row, live) for the vertices of the items whose order and parents are not a tree in breadth-first order, of
// all if heavy_light did not make the decomposition: they get NaN, because the device cannot raise an error.
template <class Group, class acc_t, class Put>
__device__ void for_each_invalid(const HeavyLight& decomposition, const HeavyLight::Lists& lists,
                                 const ChannelTile<Group, acc_t>& tile, Put put) {
    const int64_t vertices = decomposition.vertices;
    for (int64_t item = lists.first_item; item < lists.first_item + lists.items; ++item)
        if (!decomposition.made() || !decomposition.valid[item])
            tile.for_each(item * vertices, (item + 1) * vertices,
                          [&](int64_t row, bool live) { put(static_cast<int32_t>(row), live); });
}

}  // namespace grootv
