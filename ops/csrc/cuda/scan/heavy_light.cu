#include "cuda/scan/heavy_light.h"

#include "cuda/common/workspace.h"
#include "cuda/tree/subtrees.h"
#include "tree_scan.h"

namespace grootv {
namespace {

constexpr int LENGTH = Chunk::LENGTH, WINDOW = Chunk::WINDOW, LONGEST = Chunk::LONGEST,
              LIGHT_DEPTHS = HeavyLight::LIGHT_DEPTHS;

// A block keeps its numbers in shared memory.
template <class Group>
using Index = std::conditional_t<Group::IS_BLOCK, int16_t, int32_t>;
static_assert(2 * BLOCK_VERTICES <= INT16_MAX);

template <class Index>
struct alignas(2 * sizeof(Index)) HeavyPath {
    Index light_depth, length;  // 0: none
};

// Paths take their places in the lists in the order of their tops, so that the lists of a tree are always the same. The
// positions are divided into segments. A warp adds up what the paths of a segment need, each lane for one light depth.
struct Tables {
    enum Kind { SHORT_ENTRIES, LONG_ENTRIES, PIECES, LONG_PATHS, KINDS };
    static constexpr int COLUMNS = KINDS * LIGHT_DEPTHS;

    __device__ Tables(int32_t* memory, int64_t positions, int32_t most_segments)
        : total(memory), before(total + COLUMNS), positions(positions) {
        length = (positions + most_segments - 1) / most_segments;
        length = length < WARP ? WARP : length;
        segments = static_cast<int32_t>((positions + length - 1) / length);
    }

    static constexpr int64_t bytes(int64_t most_segments) { return (most_segments + 1) * COLUMNS * sizeof(int32_t); }

    __device__ int32_t& of(int32_t segment, int kind, int light_depth) const {
        return before[(kind * LIGHT_DEPTHS + light_depth) * segments + segment];
    }

    int32_t* total;   // (KINDS, LIGHT_DEPTHS)
    int32_t* before;  // (KINDS, LIGHT_DEPTHS, segments): of a segment, then of those before it
    int64_t positions, length;
    int32_t segments;
};

template <class Group>
constexpr int MOST_SEGMENTS = Group::IS_BLOCK ? WARP : 1024;

__device__ int32_t lane_of_warp() {
    return static_cast<int32_t>(threadIdx.x) % WARP;
}

// Calls task(i) for i = 0 ... count - 1 by whole warps of the group.
template <class Group, class Task>
__device__ void for_each_by_warp(int64_t count, Task task) {
    for (int64_t i = Group::rank() / WARP; i < count; i += Group::size() / WARP) task(i);
}

// Calls task(position, length) for the paths whose tops are in a segment, in order, by the lane of their light depth.
template <class Index, class Task>
__device__ void for_each_path(const Tables& tables, int64_t segment, const HeavyPath<Index>* path, Task task) {
    const int64_t next = (segment + 1) * tables.length, end = next < tables.positions ? next : tables.positions;
    for (int64_t base = segment * tables.length; base < end; base += WARP) {
        const int64_t i = base + lane_of_warp();
        const HeavyPath<Index> mine = i < end ? path[i] : HeavyPath<Index>{};
        for (unsigned tops = __ballot_sync(~0u, mine.length > 0); tops != 0; tops &= tops - 1) {
            const int j = __ffs(static_cast<int>(tops)) - 1;
            const int32_t light_depth = __shfl_sync(~0u, int32_t{mine.light_depth}, j),
                          length = __shfl_sync(~0u, int32_t{mine.length}, j);
            if (light_depth == lane_of_warp()) task(base + j, length);
        }
    }
}

struct Pieces {
    __device__ explicit Pieces(int32_t path_length) {
        constexpr int32_t UNIT = LENGTH * Chunk::MOST_PIECES;
        length = (path_length + UNIT - 1) / UNIT * LENGTH;
        count = (path_length + length - 1) / length;
    }

    int32_t length, count;
};

// Turns the numbers of a column into the sums before them.
__device__ void sum_column(const Tables& tables, int64_t column) {
    int32_t* numbers = tables.before + column * tables.segments;
    int32_t sum = 0;
    for (int32_t base = 0; base < tables.segments; base += WARP) {
        const int32_t segment = base + lane_of_warp();
        const int32_t own = segment < tables.segments ? numbers[segment] : 0, up_to = sum_to_lane(own);
        if (segment < tables.segments) numbers[segment] = sum + up_to - own;
        sum += __shfl_sync(~0u, up_to, WARP - 1);
    }
    if (lane_of_warp() == 0) tables.total[column] = sum;
}

// Where the light depth of a lane begins in each list: long paths come first among the entries, their pieces first
// among the chunks of a light depth.
struct LaneBegins {
    __device__ explicit LaneBegins(const Tables& tables) {
        auto total = [&](Tables::Kind kind) { return tables.total[kind * LIGHT_DEPTHS + lane_of_warp()]; };
        auto before = [](int32_t own) { return sum_to_lane(own) - own; };
        const int32_t pieces = total(Tables::PIECES), short_total = total(Tables::SHORT_ENTRIES);
        const int32_t own_chunks = pieces + (short_total + WINDOW - 1) / WINDOW;
        long_entries = before(total(Tables::LONG_ENTRIES));
        short_entries =
            __shfl_sync(~0u, long_entries + total(Tables::LONG_ENTRIES), LIGHT_DEPTHS - 1) + before(short_total);
        carries = before(pieces);
        long_paths = before(total(Tables::LONG_PATHS));
        chunks = before(own_chunks);
        short_paths = chunks + pieces;
        long_paths_end = long_paths + total(Tables::LONG_PATHS);
        chunks_end = chunks + own_chunks;
    }

    int32_t long_entries, short_entries, carries, long_paths, chunks, short_paths;
    int32_t long_paths_end, chunks_end;
};

template <class Group>
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    heavy_light_kernel(HeavyLight result, const int32_t* orders, const int32_t* parents, std::byte* memory) {
    using Path = HeavyPath<Index<Group>>;
    const int32_t vertices = result.vertices;
    const auto lists = result.lists(blockIdx.x);
    const int64_t first_vertex = int64_t{lists.first_item} * vertices, count = int64_t{lists.items} * vertices;
    std::byte* scratch = Group::IS_BLOCK ? shared_memory() : memory;
    const Tables tables(reinterpret_cast<int32_t*>(scratch), count, MOST_SEGMENTS<Group>);
    const Subtrees<Group, Index<Group>> trees(scratch + Tables::bytes(MOST_SEGMENTS<Group>), orders + first_vertex,
                                              parents + first_vertex, lists.items, vertices);
    trees.measure();
    auto vertex_at = [=](int32_t p) { return static_cast<int32_t>(first_vertex) + trees.root_of(p) + trees.order[p]; };

    // Every vertex finds the top of its path and the entries from there. Half of the links are not used.
    Link<Index<Group>>*links = trees.links, *spare = trees.spare;
    auto* paths = reinterpret_cast<Path*>(links + count);  // by position: that of the path whose top is there
    auto* first_entry = reinterpret_cast<Index<Group>*>(spare + count);  // likewise
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), parent = trees.parent_of(p);
        const int32_t light = trees.child_count(parent) - 1;
        const bool top = p == parent || trees.heavy_child(parent) != p;
        links[i] = {static_cast<Index<Group>>(top ? p : parent), static_cast<Index<Group>>(top         ? 0
                                                                                           : light > 1 ? light
                                                                                                       : 1)};
        paths[i] = {};
    });
    for_each<Group>(lists.items, [=](int64_t i) { result.valid[lists.first_item + i] = trees.valid[i]; });
    Group::sync();
    const Link<Index<Group>>* path = rank_lists<Group>(links, spare, count, vertices);

    // The leaf of a path finds its length and light depth.
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), root = trees.root_of(p);
        if (!trees.is_valid(p) || trees.heavy_child(p) >= 0) return;
        int light_depth = 0;
        for (int32_t top = path[p].next; top != root; ++light_depth) top = path[trees.parent_of(top)].next;
        paths[path[p].next] = {static_cast<Index<Group>>(light_depth), static_cast<Index<Group>>(path[p].distance + 1)};
    });
    Group::sync();
    for_each_by_warp<Group>(tables.segments, [=](int64_t segment) {
        int32_t short_entries = 0, long_entries = 0, pieces = 0, long_paths = 0;
        for_each_path(tables, segment, paths, [&](int64_t, int32_t length) {
            if (length > LONGEST) {
                long_entries += length;
                pieces += Pieces(length).count;
                ++long_paths;
            } else {
                short_entries += length;
            }
        });
        auto put = [=](Tables::Kind kind, int32_t sum) { tables.of(segment, kind, lane_of_warp()) = sum; };
        put(Tables::SHORT_ENTRIES, short_entries);
        put(Tables::LONG_ENTRIES, long_entries);
        put(Tables::PIECES, pieces);
        put(Tables::LONG_PATHS, long_paths);
    });
    Group::sync();
    for_each_by_warp<Group>(Tables::COLUMNS, [=](int64_t column) { sum_column(tables, column); });
    Group::sync();

    const LaneBegins begins(tables);
    if (Group::rank() < WARP) {
        const int32_t lane = lane_of_warp();
        if (lane == 0) lists.begins->chunks[0] = lists.begins->long_paths[0] = 0;
        if (lane == 0 && lists.first_item == 0) result.mark_made();
        lists.begins->chunks[lane + 1] = begins.chunks_end;
        lists.begins->short_paths[lane] = begins.short_paths;
        lists.begins->long_paths[lane + 1] = begins.long_paths_end;
    }
    const int32_t chunks = __shfl_sync(~0u, begins.chunks_end, LIGHT_DEPTHS - 1);
    for_each<Group>(chunks, [=](int64_t i) { lists.chunks[i] = {INT32_MAX, 0, -1}; });
    Group::sync();
    const auto first_carry = static_cast<int32_t>(lists.first_item * HeavyLight::carries_of_one(vertices));
    for_each_by_warp<Group>(tables.segments, [=](int64_t segment) {
        auto before = [=](Tables::Kind kind) { return tables.of(segment, kind, lane_of_warp()); };
        int32_t long_entry = begins.long_entries + before(Tables::LONG_ENTRIES), piece = before(Tables::PIECES);
        int32_t long_path = begins.long_paths + before(Tables::LONG_PATHS), short_entry = before(Tables::SHORT_ENTRIES);
        for_each_path(tables, segment, paths, [&](int64_t i, int32_t length) {
            if (length > LONGEST) {
                const Pieces pieces(length);
                const int32_t carry = first_carry + begins.carries + piece;
                for (int32_t k = 0; k < pieces.count; ++k) {
                    const int32_t from = k * pieces.length, to = k + 1 < pieces.count ? from + pieces.length : length;
                    lists.chunks[begins.chunks + piece + k] = {long_entry + from, long_entry + to, carry + k};
                }
                lists.long_paths[long_path++] = {carry, pieces.count};
                first_entry[i] = static_cast<Index<Group>>(long_entry);
                long_entry += length;
                piece += pieces.count;
            } else {
                const int32_t first = begins.short_entries + short_entry;
                Chunk& chunk = lists.chunks[begins.short_paths + short_entry / WINDOW];
                atomicMin(&chunk.first, first);
                atomicMax(&chunk.end, first + length);
                first_entry[i] = static_cast<Index<Group>>(first);
                short_entry += length;
            }
        });
    });
    Group::sync();
    for_each<Group>(chunks, [=](int64_t i) {
        if (lists.chunks[i].end == 0) lists.chunks[i] = {1, 1, -1};  // empty: no path starts within its entries
    });
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), children = trees.child_count(p);
        if (!trees.is_valid(p)) return;
        auto place_of = [=](int32_t p) { return first_entry[path[p].next] + path[p].distance; };
        PathEntry entry = PathEntry::of_vertex(vertex_at(p), children == 0, children > 1);
        if (p == trees.root_of(p)) {
            entry = entry.as_root();
        } else if (path[p].next == p) {
            const int32_t parent = trees.parent_position[p], child = p - trees.first_child[parent];
            const int32_t light = trees.heavy_child(parent) < p ? child - 1 : child;
            entry = entry.as_top(vertex_at(parent), light == 0);
            if (light > 0) lists.entries[place_of(parent) + light] = PathEntry::of_light_edge(vertex_at(p));
        }
        lists.entries[place_of(p)] = entry;
    });
}

int64_t block_bytes(int64_t vertices) {
    return Tables::bytes(MOST_SEGMENTS<BlockGroup>) + Subtrees<BlockGroup, Index<BlockGroup>>::bytes(1, vertices);
}

Tensor heavy_light(const Tensor& order, const Tensor& parent, const std::string& scan) {
    const char* function = scan.c_str();
    check_tree(function, order, parent);
    check_batch(function, order.size(0), order.size(1));
    return decompose_heavy_light(Device(function, order), as_contiguous(order), as_contiguous(parent));
}

}  // namespace

bool HeavyLight::takes_blocks(const Device& device, int64_t vertices) {
    return vertices <= BLOCK_VERTICES && std::max(SUM_BYTES * vertices, block_bytes(vertices)) <= device.shared_bytes();
}

Tensor decompose_heavy_light(const Device& device, const Tensor& order, const Tensor& parent) {
    const int64_t batch = order.size(0), vertices = order.size(1);
    Tensor decomposition = make_empty(order, {batch, HeavyLight::words_of_one(vertices)});
    if (batch == 0) return decomposition;
    const bool blocks = HeavyLight::takes_blocks(device, vertices);
    const HeavyLight result(decomposition.mutable_data_ptr<int32_t>(), batch, vertices, !blocks);
    const int32_t *orders = order.const_data_ptr<int32_t>(), *parents = parent.const_data_ptr<int32_t>();
    if (blocks) {
        device.launch(heavy_light_kernel<BlockGroup>, batch, GROUP_THREADS, block_bytes(vertices), result, orders,
                      parents, nullptr);
    } else {
        Workspace workspace(order);
        auto* memory = workspace.take<std::byte>(Tables::bytes(MOST_SEGMENTS<GridGroup>) +
                                                 Subtrees<GridGroup, Index<GridGroup>>::bytes(batch, vertices));
        launch_grid_group(device, heavy_light_kernel<GridGroup>, batch * vertices, result, orders, parents, memory);
    }
    return decomposition;
}

}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, heavy_light);
}
