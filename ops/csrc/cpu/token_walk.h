// In which order the pass over a tree of tokens takes them, from the leaves to the root, and in which rows it keeps
// states.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "token_scan.h"

namespace grootv {

// One token of the pass to the root: its state, then its share of the parent's.
struct TokenVisit {
    int32_t token, parent;  // the root's is -1
    int32_t row, parent_row;
    bool received;         // the row holds what the children sent
    bool parent_received;  // the parent's row holds what other children sent
};

struct TokenWalk {
    const TokenVisit* visits;
    int64_t length, rows;
};

// The walks of a batch of trees.
class TokenWalks {
public:
    TokenWalks(const TokenScanArguments& scan, const Tensor& order, const Tensor& parent)
        : length_(scan.length), visits_(scan.batch * scan.length), rows_(scan.batch) {
        Tensor orders = as_contiguous(order), parents = as_contiguous(parent);
        std::atomic<int64_t> wrong{-1};
        parallel_for_each(scan.function, scan.batch, [&](int64_t item) {
            if (!plan(orders.const_data_ptr<int32_t>() + item * length_,
                      parents.const_data_ptr<int32_t>() + item * length_, item))
                wrong = item;
        });
        TokenScanArguments::check_tree(scan.function, wrong < 0, wrong);
    }

    TokenWalk operator[](int64_t item) const { return {visits_.data() + item * length_, length_, rows_[item]}; }

private:
    bool plan(const int32_t* order, const int32_t* parent, int64_t item) {
        const auto length = static_cast<int32_t>(length_);
        Workspace workspace;
        auto *position = workspace.take<int32_t>(length), *row = workspace.take<int32_t>(length);
        std::fill_n(position, length, -1);
        for (int32_t p = 0; p < length; ++p) {
            if (order[p] < 0 || order[p] >= length || position[order[p]] >= 0) return false;
            position[order[p]] = p;
        }
        if (order[0] != length - 1) return false;
        for (int32_t p = 1; p < length; ++p)
            if (int32_t above = parent[order[p]]; above < 0 || above >= length || position[above] >= p) return false;

        std::vector<int32_t> free;
        int32_t rows = 0;
        std::fill_n(row, length, -1);
        TokenVisit* visit = visits_.data() + item * length_;
        for (int32_t p = length - 1; p >= 0; --p, ++visit) {
            const int32_t token = order[p];
            visit->received = row[token] >= 0;
            if (!visit->received) {
                if (free.empty()) free.push_back(rows++);
                row[token] = free.back();
                free.pop_back();
            }
            visit->token = token, visit->row = visit->parent_row = row[token], visit->parent = -1;
            if (p == 0) break;
            const int32_t above = visit->parent = parent[token];
            visit->parent_received = row[above] >= 0;
            if (visit->parent_received)
                free.push_back(row[token]);
            else
                row[above] = row[token];
            visit->parent_row = row[above];
        }
        rows_[item] = rows;
        return true;
    }

    int64_t length_;
    std::vector<TokenVisit> visits_;
    std::vector<int64_t> rows_;
};

}  // namespace grootv
