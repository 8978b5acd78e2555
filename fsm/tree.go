package fsm

import (
	"bytes"

	"github.com/tidwall/btree"

	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// tree is a copy-on-write B-tree of records by token.
//
// What makes it safe without locks (read in btree v1.8.2, btreeg.go): a node is
// written in place only when its isoid equals that of the tree it is written
// through, else it is copied first. Copy draws new ids for both trees, so after
// it every shared node is frozen. Get and Scan load nodes with mut=false and
// write nothing, neither in nodes nor in the tree. But Copy writes the id of the
// tree it copies: hence only the goroutine of Apply copies, and only its own
// tree; what is given to a View is read and nothing else. The *Mut methods are
// never used.
//
// The token lies in the item, not behind a pointer: a look-up then allocates
// nothing and touches no record but the one it finds.
type tree[R any] struct{ bt *btree.BTreeG[item[R]] }

type item[R any] struct {
	token  Token
	record R
}

// degree makes nodes of at most 31 items: an entry of many random tokens copies
// about one leaf per command, and smaller leaves are cheaper to copy.
const degree = 16

func newTree[R any]() tree[R] {
	return tree[R]{btree.NewBTreeGOptions(func(a, b item[R]) bool {
		return bytes.Compare(a.token[:], b.token[:]) < 0
	}, btree.Options{Degree: degree, NoLocks: true})}
}

func (t tree[R]) get(k Token) (R, bool) {
	i, ok := t.bt.Get(item[R]{token: k})
	return i.record, ok
}

func (t tree[R]) set(k Token, r R) { t.bt.Set(item[R]{k, r}) }
func (t tree[R]) delete(k Token)   { t.bt.Delete(item[R]{token: k}) }
func (t tree[R]) len() int         { return t.bt.Len() }
func (t tree[R]) freeze() tree[R]  { return tree[R]{t.bt.Copy()} }

func (t tree[R]) scan(f func(R) bool) {
	t.bt.Scan(func(i item[R]) bool { return f(i.record) })
}

func newAnchors() *btree.BTreeG[*fsmpb.Anchor] {
	return btree.NewBTreeGOptions(func(a, b *fsmpb.Anchor) bool { return a.Peer < b.Peer },
		btree.Options{Degree: degree, NoLocks: true})
}
