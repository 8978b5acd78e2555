package fsm

import (
	"bytes"
	"encoding/binary"

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
// An item is the first eight bytes of the token and the record. Tokens are keyed
// hashes, so the prefix nearly always decides, a look-up touches no record but
// the one it finds, and a node is small to copy: an entry of many random tokens
// copies about one leaf for each.
type tree[R keyed] struct{ bt *btree.BTreeG[item[R]] }

// keyed is a record that knows its token.
type keyed interface {
	comparable
	key() *Token
}

type item[R keyed] struct {
	prefix uint64
	record R // the zero record comes before all with this prefix: a place to begin looking
}

// degree makes nodes of at most 63 items, one KiB. Smaller leaves are cheaper to
// copy, but then an entry of 256 commands copies more of the nodes above them:
// of 8, 16 and 32 this was the fastest.
const degree = 32

func newTree[R keyed]() tree[R] {
	return tree[R]{btree.NewBTreeGOptions(func(a, b item[R]) bool {
		if a.prefix != b.prefix {
			return a.prefix < b.prefix
		}
		var none R
		if a.record == none || b.record == none {
			return a.record == none && b.record != none
		}
		return bytes.Compare(a.record.key()[:], b.record.key()[:]) < 0
	}, btree.Options{Degree: degree, NoLocks: true})}
}

func prefix(t *Token) uint64 { return binary.BigEndian.Uint64(t[:8]) }

// get allocates nothing: with the token itself in the pivot it would.
func (t tree[R]) get(k Token) (r R, ok bool) {
	p := prefix(&k)
	t.bt.Ascend(item[R]{prefix: p}, func(i item[R]) bool {
		if i.prefix != p {
			return false
		}
		if *i.record.key() == k {
			r, ok = i.record, true
		}
		return !ok
	})
	return r, ok
}

func (t tree[R]) set(r R)         { t.bt.Set(item[R]{prefix(r.key()), r}) }
func (t tree[R]) delete(r R)      { t.bt.Delete(item[R]{prefix(r.key()), r}) }
func (t tree[R]) len() int        { return t.bt.Len() }
func (t tree[R]) freeze() tree[R] { return tree[R]{t.bt.Copy()} }

func (t tree[R]) scan(f func(R) bool) {
	t.bt.Scan(func(i item[R]) bool { return f(i.record) })
}

// last returns the record with the highest token.
func (t tree[R]) last() (R, bool) {
	i, ok := t.bt.Max()
	return i.record, ok
}

func newAnchors() *btree.BTreeG[*fsmpb.Anchor] {
	return btree.NewBTreeGOptions(func(a, b *fsmpb.Anchor) bool { return a.Peer < b.Peer },
		btree.Options{Degree: degree, NoLocks: true})
}
