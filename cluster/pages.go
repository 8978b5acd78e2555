package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"slices"
)

// checkPages reads the file of the log as bbolt would and tells whether its pages
// hang together: those of the two buckets of a log, each in bounds and referred to
// once, of a known kind, with all its elements inside it and its keys in order.
//
// bbolt looks at that itself when it opens a file for writing, but panics when
// it does not like what it sees, on a goroutine of its own, and follows a page
// that refers to itself for ever. The layout is that of bbolt's file format
// version 2 (go.etcd.io/bbolt/internal/common), little-endian on all platforms
// that we build for.
func checkPages(path string) error {
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(file) == 0 {
		return nil // bbolt makes a new one
	}
	if err != nil {
		return err
	}
	p, root, err := readMeta(file)
	if err == nil {
		err = p.bucket(root, 0)
	}
	if err != nil {
		return &ErrCorruptLog{File: path, Detail: err.Error()}
	}
	return nil
}

// dropUnwritten removes a file of the log that holds nothing: bbolt had begun to make it
// when the power was lost, and its length, or a page, came to the disk before the rest.
// For a peer without a marker alone. bbolt has its first pages on the disk before Start
// goes on, so that whoever has a marker had a file with something in it; and what it
// promised, if Raft ever ran here, must not be taken for nothing.
func dropUnwritten(path string) error {
	file, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(file) >= 2*os.Getpagesize() && !zero(file):
		return nil
	}
	return os.Remove(path)
}

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2
	pageHead    = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16
	branchPage  = 0x01
	leafPage    = 0x02
	bucketFlag  = 0x01 // of a leaf element whose value is a bucket
	maxNesting  = 8    // of buckets, and of pages in a tree: far more than a log has
	maxTree     = 32
)

// buckets are those of raft-boltdb, in bbolt's order.
var buckets = []string{"conf", "logs"}

type pages struct {
	file  []byte
	size  uint64 // of a page
	limit uint64 // number of pages in use
	seen  map[uint64]bool
}

var le = binary.LittleEndian

// readMeta finds the newer of the two meta pages. Both must be valid: where one is
// not, bbolt goes back to the other, and with it to what the file held before the
// last commit, which may have been a vote, or entries that were acknowledged. A
// crash does not leave such a page: what bbolt writes of it lies within one sector.
func readMeta(file []byte) (*pages, uint64, error) {
	size := uint64(os.Getpagesize())
	first := head(file, 0)
	if first != nil {
		size = uint64(le.Uint32(first[8:]))
	}
	second := head(file, size)
	if first == nil && second == nil {
		return nil, 0, errors.New("neither of its two heads is valid")
	}
	if first == nil || second == nil {
		return nil, 0, errors.New("one of its two heads is damaged: what was written last may be missing")
	}
	if size < 512 || size > 1<<16 {
		return nil, 0, fmt.Errorf("its page size is %d", size)
	}
	newer := first
	if le.Uint64(second[48:]) > le.Uint64(first[48:]) {
		newer = second
	}
	return &pages{file: file, size: size, limit: le.Uint64(newer[40:]), seen: map[uint64]bool{}}, le.Uint64(newer[16:]), nil
}

// head is the meta page at an offset; nil when it is not valid.
func head(file []byte, at uint64) []byte {
	if at+pageHead+64 > uint64(len(file)) {
		return nil
	}
	m := file[at+pageHead:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	if le.Uint32(m) != boltMagic || le.Uint32(m[4:]) != boltVersion || le.Uint64(m[56:]) != sum.Sum64() {
		return nil
	}
	return m
}

func (p *pages) bucket(root uint64, nesting int) error {
	if nesting > maxNesting {
		return errors.New("its buckets are nested too deeply")
	}
	return p.tree(root, nil, nil, nesting, 0)
}

// tree checks the page and what is below it; its keys are in [low, high).
func (p *pages) tree(id uint64, low, high []byte, nesting, depth int) error {
	if depth > maxTree {
		return errors.New("its pages form a loop")
	}
	page, err := p.page(id)
	if err != nil {
		return err
	}
	count := int(le.Uint16(page[10:]))
	leaf := le.Uint16(page[8:]) == leafPage
	keys, values, err := elements(page, count, leaf)
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	for i := range count {
		if i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 || bytes.Compare(keys[i], low) < 0 || high != nil && bytes.Compare(keys[i], high) >= 0 {
			return fmt.Errorf("page %d: its keys are out of order", id)
		}
	}
	if leaf && nesting == 0 && depth == 0 && count > 0 && !slices.EqualFunc(keys, buckets, func(k []byte, name string) bool { return string(k) == name }) {
		return errors.New("it has other buckets than those of a log") // the library would make new ones, and begin anew
	}
	for i := range count {
		switch {
		case !leaf:
			next := high
			if i+1 < count {
				next = keys[i+1]
			}
			err = p.tree(le.Uint64(values[i]), keys[i], next, nesting, depth+1)
		case le.Uint32(page[pageHead+i*elementSize:])&bucketFlag != 0:
			if len(values[i]) < 16 {
				return fmt.Errorf("page %d: a bucket is cut short", id)
			}
			if root := le.Uint64(values[i]); root != 0 {
				err = p.bucket(root, nesting+1)
			} else {
				err = inline(keys[i], values[i][16:])
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// page returns a page that nobody has referred to before, overflow included.
func (p *pages) page(id uint64) ([]byte, error) {
	if id < 2 || id >= p.limit || (id+1)*p.size > uint64(len(p.file)) {
		return nil, fmt.Errorf("page %d is out of bounds", id)
	}
	page := p.file[id*p.size:]
	overflow := uint64(le.Uint32(page[12:]))
	flags := le.Uint16(page[8:])
	switch {
	case le.Uint64(page) != id || flags != leafPage && flags != branchPage:
		return nil, fmt.Errorf("page %d is not what it should be", id)
	case id+overflow >= p.limit || (id+overflow+1)*p.size > uint64(len(p.file)):
		return nil, fmt.Errorf("page %d is out of bounds", id)
	case flags == branchPage && le.Uint16(page[10:]) == 0:
		return nil, fmt.Errorf("page %d leads nowhere", id)
	case le.Uint16(page[10:]) == 0 && !zero(page[pageHead:(overflow+1)*p.size]):
		return nil, fmt.Errorf("page %d has lost its elements", id)
	}
	for i := range overflow + 1 {
		if p.seen[id+i] {
			return nil, fmt.Errorf("page %d is referred to twice", id+i)
		}
		p.seen[id+i] = true
	}
	return page[:(overflow+1)*p.size], nil
}

// elements returns keys and values of a leaf, or keys and page ids of a branch. bbolt
// writes what they hold without a gap, in their order, right behind the table of
// elements: a count that is too small shows there.
func elements(page []byte, count int, leaf bool) (keys, values [][]byte, err error) {
	keys, values = make([][]byte, count), make([][]byte, count)
	next := uint64(pageHead + count*elementSize)
	for i := range count {
		var at uint64
		if keys[i], values[i], at, err = element(page, i, leaf); err != nil {
			return nil, nil, err
		}
		if at != next {
			return nil, nil, errors.New("there is a gap between its elements")
		}
		if next += uint64(len(keys[i])); leaf {
			next += uint64(len(values[i]))
		}
	}
	return keys, values, nil
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// element returns an element, and where in the page its key is.
func element(page []byte, i int, leaf bool) (key, value []byte, start uint64, err error) {
	at := uint64(pageHead + i*elementSize)
	if at+elementSize > uint64(len(page)) {
		return nil, nil, 0, errors.New("it has more elements than fit")
	}
	e := page[at:]
	position, keySize, valueSize := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:])), uint64(0)
	if leaf { // flags, position, key size, value size
		position, keySize, valueSize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
	}
	if at+position+keySize+valueSize > uint64(len(page)) {
		return nil, nil, 0, errors.New("an element reaches beyond it")
	}
	if keySize == 0 {
		return nil, nil, 0, errors.New("an element has no key")
	}
	key = e[position : position+keySize]
	if !leaf {
		return key, e[8:16], at + position, nil
	}
	return key, e[position+keySize : position+keySize+valueSize], at + position, nil
}

// inline checks a bucket that is small enough to lie in its parent's value, which has
// no byte more. That of term and vote always is.
func inline(name, page []byte) error {
	if len(page) < pageHead || le.Uint16(page[8:]) != leafPage {
		return errors.New("an inline bucket is not what it should be")
	}
	count := int(le.Uint16(page[10:]))
	keys, values, err := elements(page, count, true)
	if err != nil {
		return fmt.Errorf("an inline bucket: %w", err)
	}
	size := pageHead + count*elementSize
	for i, key := range keys {
		size += len(key) + len(values[i])
		if string(name) == buckets[0] && !slices.ContainsFunc(stableKeys, func(known []byte) bool { return bytes.Equal(known, key) }) {
			return errors.New("it has other names than those of term and vote") // what is missing under its name would begin anew
		}
	}
	if size != len(page) {
		return fmt.Errorf("an inline bucket has %d bytes, and its elements %d", len(page), size)
	}
	return nil
}
