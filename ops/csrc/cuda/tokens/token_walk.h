// The order in which a scan over tokens takes them, from the leaves to the root: every subtree without interruption,
// that of the heavy child before those of its siblings.
//
// So most tokens come right before their parent. The others leave what they send in a row that the children of one
// parent share. While a row is in use the walk is in a subtree of at most half the parent's size, so as many rows as
// the length has bits are enough for any tree.
#pragma once

#include <bit>

#include "cuda/common/thread_group.h"
#include "cuda/common/workspace.h"

namespace grootv {

struct alignas(8) TokenVisit {
    int32_t token;
    int16_t row;         // of the parent
    bool siblings_sent;  // the row holds what other children of the parent sent
    bool parent_is_next;
};

// The walks of a batch of trees.
struct TokenWalks {
    const TokenVisit* visits;  // (B, L)
    const int32_t* valid;  // by item: whether order and parent are a tree in breadth-first order from the last token;
                           // otherwise its walk is the sequence

    static int64_t rows(int64_t length) { return std::bit_width(static_cast<uint64_t>(length)) - 1; }
};

// order and parent: (B, L), as in Tree.
TokenWalks walk_tokens(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                       int64_t batch, int64_t length);

}  // namespace grootv
