#include "cuda/scan/heavy_light.h"

#include "cuda/tree/subtrees.h"

namespace grootv {
namespace {

constexpr int LENGTH = PathChunk::LENGTH, LONGEST = PathChunk::LONGEST, ROUNDS = PathSchedule::ROUNDS;

struct Path {
    int32_t round, length;  // 0: none
};

struct Scratch {
    Path* path;           // at the position of its top
    int32_t* first_step;  // likewise
    int32_t* tables;      // of the grid, see Tables; blocks have theirs in shared memory
};

// Paths take their places in the lists in the order of their tops, so that every schedule of a tree is the same. The
// positions are divided into segments, of which warps add up what the paths need, each lane for one round.
struct Tables {
    enum Kind { WHOLE_STEPS, LONG_STEPS, PIECES, LONG_PATHS, KINDS };
    static constexpr int COLUMNS = KINDS * ROUNDS;

    __device__ Tables(int32_t* memory, int64_t positions, int32_t most_segments)
        : total(memory), before(total + COLUMNS), positions(positions) {
        length = (positions + most_segments - 1) / most_segments;
        length = length < WARP ? WARP : length;
        segments = static_cast<int32_t>((positions + length - 1) / length);
    }

    static constexpr int64_t size(int64_t most_segments) { return (most_segments + 1) * COLUMNS; }

    __device__ int32_t& of(int32_t segment, int kind, int round) const {
        return before[(kind * ROUNDS + round) * segments + segment];
    }

    int32_t* total;   // (KINDS, ROUNDS)
    int32_t* before;  // (KINDS, ROUNDS, segments): of a segment, then of those before it
    int64_t positions, length;
    int32_t segments;
};

template <class Team>
constexpr int MOST_SEGMENTS = Team::IS_BLOCK ? WARP : 1024;

__device__ int32_t lane_of_warp() {
    return static_cast<int32_t>(threadIdx.x) % WARP;
}

// Calls task(i) for i = 0 ... count - 1 by whole warps of the team.
template <class Team, class Task>
__device__ void for_each_by_warp(int64_t count, Task task) {
    for (int64_t i = Team::rank() / WARP; i < count; i += Team::size() / WARP) task(i);
}

// Calls task(position, length) for the paths whose tops are in a segment, in order, by the lane of their round.
template <class Task>
__device__ void for_each_path(const Tables& tables, int64_t segment, const Path* path, Task task) {
    const int64_t next = (segment + 1) * tables.length, end = next < tables.positions ? next : tables.positions;
    for (int64_t base = segment * tables.length; base < end; base += WARP) {
        const int64_t i = base + lane_of_warp();
        const Path mine = i < end ? path[i] : Path{};
        for (unsigned tops = __ballot_sync(~0u, mine.length > 0); tops != 0; tops &= tops - 1) {
            const int j = __ffs(static_cast<int>(tops)) - 1;
            const int32_t round = __shfl_sync(~0u, mine.round, j), length = __shfl_sync(~0u, mine.length, j);
            if (round == lane_of_warp()) task(base + j, length);
        }
    }
}

struct Pieces {
    __device__ explicit Pieces(int32_t path_length) {
        constexpr int32_t SHORT = LENGTH * PathChunk::MOST_PIECES;
        length = (path_length + SHORT - 1) / SHORT * LENGTH;
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

// Where the round of a lane starts in each list: long paths come first among the steps, their pieces first among the
// chunks of a round.
struct RoundBegin {
    __device__ explicit RoundBegin(const Tables& tables) {
        auto total = [&](Tables::Kind kind) { return tables.total[kind * ROUNDS + lane_of_warp()]; };
        auto before = [](int32_t own) { return sum_to_lane(own) - own; };
        const int32_t pieces = total(Tables::PIECES), whole = total(Tables::WHOLE_STEPS);
        const int32_t own_chunks = pieces + (whole + LENGTH - 1) / LENGTH;
        long_steps = before(total(Tables::LONG_STEPS));
        whole_steps = __shfl_sync(~0u, long_steps + total(Tables::LONG_STEPS), ROUNDS - 1) + before(whole);
        carries = before(pieces);
        long_paths = before(total(Tables::LONG_PATHS));
        chunks = before(own_chunks);
        whole_paths = chunks + pieces;
        long_paths_end = long_paths + total(Tables::LONG_PATHS);
        chunks_end = chunks + own_chunks;
    }

    int32_t long_steps, whole_steps, carries, long_paths, chunks, whole_paths;
    int32_t long_paths_end, chunks_end;
};

template <class Team>
__global__ void __launch_bounds__(TEAM_THREADS, 1)
    path_schedule_kernel(PathSchedule schedule, Subtrees trees, Scratch scratch) {
    const int32_t vertices = schedule.vertices;
    const auto lists = schedule.lists(blockIdx.x);
    const int64_t begin = int64_t{lists.first_item} * vertices, count = int64_t{lists.items} * vertices;
    const int32_t *order = trees.order, *valid = trees.valid;
    int32_t* memory = Team::IS_BLOCK ? reinterpret_cast<int32_t*>(shared_memory()) : scratch.tables;
    const Tables tables(memory, count, MOST_SEGMENTS<Team>);
    Path* paths = scratch.path + begin;
    int32_t* first_step = scratch.first_step + begin;

    trees.measure<Team>(lists.first_item, lists.items);
    Link *links = trees.links + 2 * begin, *spare = trees.spare + 2 * begin;

    // Every vertex finds the top of its path and the steps from there.
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), above = trees.parent_of(p),
                      light = trees.children(above) - 1;
        const bool top = p == above || trees.preferred_child(above) != p;
        links[i] = {top ? p : above, top ? 0 : light > 1 ? light : 1};
        paths[i] = {};
    });
    Team::sync();
    const Link* path = rank_lists<Team>(links, spare, begin, count, vertices);

    // The lowest vertex of a path tells its length and the rounds above it.
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = trees.root_of(p);
        if (!valid[p / vertices] || trees.preferred_child(p) >= 0) return;
        int32_t round = 0;
        for (int32_t top = path[i].next; top != root; ++round) top = path[trees.parent_of(top) - begin].next;
        paths[path[i].next - begin] = {round, path[i].distance + 1};
    });
    Team::sync();
    for_each_by_warp<Team>(tables.segments, [=](int64_t segment) {
        int32_t whole_steps = 0, long_steps = 0, pieces = 0, long_paths = 0;
        for_each_path(tables, segment, paths, [&](int64_t, int32_t length) {
            if (length > LONGEST) {
                long_steps += length;
                pieces += Pieces(length).count;
                ++long_paths;
            } else {
                whole_steps += length;
            }
        });
        auto put = [=](Tables::Kind kind, int32_t sum) { tables.of(segment, kind, lane_of_warp()) = sum; };
        put(Tables::WHOLE_STEPS, whole_steps);
        put(Tables::LONG_STEPS, long_steps);
        put(Tables::PIECES, pieces);
        put(Tables::LONG_PATHS, long_paths);
    });
    Team::sync();
    for_each_by_warp<Team>(Tables::COLUMNS, [=](int64_t column) { sum_column(tables, column); });
    Team::sync();

    const RoundBegin round(tables);
    if (Team::rank() < WARP) {
        const int32_t lane = lane_of_warp();
        if (lane == 0) lists.rounds->chunks[0] = lists.rounds->long_paths[0] = 0;
        lists.rounds->chunks[lane + 1] = round.chunks_end;
        lists.rounds->whole_paths[lane] = round.whole_paths;
        lists.rounds->long_paths[lane + 1] = round.long_paths_end;
    }
    const int32_t chunks = __shfl_sync(~0u, round.chunks_end, ROUNDS - 1);
    for_each<Team>(chunks, [=](int64_t i) { lists.chunks[i] = {INT32_MAX, 0, -1}; });
    Team::sync();
    const auto first_carry = static_cast<int32_t>(lists.first_item * PathSchedule::carries_of_one(vertices));
    for_each_by_warp<Team>(tables.segments, [=](int64_t segment) {
        auto before = [=](Tables::Kind kind) { return tables.of(segment, kind, lane_of_warp()); };
        int32_t long_step = round.long_steps + before(Tables::LONG_STEPS), piece = before(Tables::PIECES);
        int32_t long_path = round.long_paths + before(Tables::LONG_PATHS), whole_step = before(Tables::WHOLE_STEPS);
        for_each_path(tables, segment, paths, [&](int64_t i, int32_t length) {
            if (length > LONGEST) {
                const Pieces pieces(length);
                const int32_t carry = first_carry + round.carries + piece;
                for (int32_t k = 0; k < pieces.count; ++k) {
                    const int32_t from = k * pieces.length, to = k + 1 < pieces.count ? from + pieces.length : length;
                    lists.chunks[round.chunks + piece + k] = {long_step + from, long_step + to, carry + k};
                }
                lists.long_paths[long_path++] = {carry, pieces.count};
                first_step[i] = long_step;
                long_step += length;
                piece += pieces.count;
            } else {
                const int32_t first = round.whole_steps + whole_step;
                PathChunk& chunk = lists.chunks[round.whole_paths + whole_step / LENGTH];
                atomicMin(&chunk.first, first);
                atomicMax(&chunk.end, first + length);
                first_step[i] = first;
                whole_step += length;
            }
        });
    });
    Team::sync();
    for_each<Team>(chunks, [=](int64_t i) {
        if (lists.chunks[i].end == 0) lists.chunks[i] = {1, 1, -1};  // of no steps: within a path no other starts
    });
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = trees.root_of(p), children = trees.children(p);
        if (!valid[p / vertices]) return;
        auto place_of = [=](int64_t j) { return first_step[path[j].next - begin] + path[j].distance; };
        Step step = Step::vertex(root + order[p], children == 0, children > 1);
        if (p == root) {
            step = step.as_root();
        } else if (path[i].next == p) {
            const int32_t parent = trees.above[p], child = p - trees.first_child[parent];
            const int32_t light = trees.preferred_child(parent) < p ? child - 1 : child;
            step = step.as_top(root + order[parent], light == 0);
            if (light > 0) lists.steps[place_of(parent - begin) + light] = Step::light_child(root + order[p]);
        }
        lists.steps[place_of(i)] = step;
    });
}

}  // namespace

PathSchedule schedule_paths(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                            int64_t batch, int64_t vertices, bool shared_by_all) {
    const int64_t count = batch * vertices;
    const Subtrees trees(workspace, order, parent, batch, vertices);
    PathSchedule schedule{shared_by_all,
                          static_cast<int32_t>(batch),
                          static_cast<int32_t>(vertices),
                          workspace.take<Step>(batch * PathSchedule::steps_of_one(vertices)),
                          workspace.take<PathChunk>(batch * PathSchedule::chunks_of_one(vertices)),
                          workspace.take<LongPath>(batch * PathSchedule::long_paths_of_one(vertices)),
                          workspace.take<PathSchedule::Rounds>(shared_by_all ? 1 : batch),
                          trees.valid};
    Scratch scratch{workspace.take<Path>(count), workspace.take<int32_t>(count), nullptr};
    if (shared_by_all) {
        scratch.tables = workspace.take<int32_t>(Tables::size(MOST_SEGMENTS<GridTeam>));
        launch_grid_team(device, path_schedule_kernel<GridTeam>, count, schedule, trees, scratch);
    } else {
        device.launch(path_schedule_kernel<BlockTeam>, dim3(static_cast<unsigned>(batch)), TEAM_THREADS,
                      Tables::size(MOST_SEGMENTS<BlockTeam>) * sizeof(int32_t), schedule, trees, scratch);
    }
    return schedule;
}

}  // namespace grootv
