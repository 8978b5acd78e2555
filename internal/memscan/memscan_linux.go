// Package memscan looks for byte strings in the memory of another process, for tests of what a program forgets.
package memscan

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

// Part is how many bytes of a needle are looked for at once: half of a 32-byte key, which is also a round key of AES.
const Part = 16

// Needles are byte strings to look for, in all the forms in which Go's cryptography writes a key.
type Needles struct {
	parts map[uint64][]part // by their first eight bytes
	first [1 << 16]bool     // which low halves of those keys there are, to look at most bytes only once
}

type part struct {
	name  string
	bytes [Part]byte
}

// Add looks for each whole part of b: as it is, reversed (a big number in machine words), with the bytes of each
// word of 4 and of 8 reversed (what is read as big-endian numbers), and masked as HMAC masks keys.
func (n *Needles) Add(name string, b []byte) {
	n.AddExactly(name, b)
	n.AddExactly(name+" reversed", swapped(b, len(b)))
	n.AddExactly(name+" in words of 4", swapped(b, 4))
	n.AddExactly(name+" in words of 8", swapped(b, 8))
	n.AddExactly(name+" under the inner mask", masked(b, 0x36))
	n.AddExactly(name+" under the outer mask", masked(b, 0x5c))
}

// AddExactly looks for each whole part of b as it is.
func (n *Needles) AddExactly(name string, b []byte) {
	if n.parts == nil {
		n.parts = make(map[uint64][]part)
	}
	for i := 0; i+Part <= len(b); i += Part {
		key := binary.LittleEndian.Uint64(b[i:])
		n.parts[key] = append(n.parts[key], part{fmt.Sprintf("%s, byte %d on", name, i), [Part]byte(b[i:])})
		n.first[uint16(key)] = true
	}
}

func swapped(b []byte, word int) []byte {
	out := make([]byte, len(b))
	for i := range b {
		at := i / word * word
		out[i] = b[min(at+word, len(b))-1-(i-at)]
	}
	return out
}

func masked(b []byte, mask byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ mask
	}
	return out
}

// Hit is a place where a needle was found.
type Hit struct {
	Needle  string
	Address uint64
	Mapping string // its line in /proc/<pid>/maps
	Around  []byte // some bytes before and behind
}

// String describes the place, not the bytes.
func (h Hit) String() string { return fmt.Sprintf("%s at %#x in %s", h.Needle, h.Address, h.Mapping) }

// Find searches all memory of the process that it may read and that is backed by anything, and says how many bytes that
// were. It needs the rights of a debugger: root, for a process that is not dumpable.
func Find(pid int, n *Needles) (hits []Hit, searched int64, err error) {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, 0, err
	}
	defer memory.Close()
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, 0, err
	}
	defer pages.Close()
	mappings, err := resident(pid)
	if err != nil {
		return nil, 0, err
	}
	for _, m := range mappings {
		err := m.present(pages, func(from, to uint64) error {
			b := make([]byte, to-from+Part-1) // and what reaches into the next range
			got, err := memory.ReadAt(b, int64(from))
			if err != nil && got == 0 {
				return nil // unmapped meanwhile
			}
			searched += int64(got)
			n.search(b[:got], func(name string, at int) {
				hits = append(hits, Hit{name, from + uint64(at), m.line, b[max(0, at-64):min(got, at+64)]})
			})
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return hits, searched, nil
}

func (n *Needles) search(b []byte, found func(name string, at int)) {
	for i := 0; i+Part <= len(b); i++ {
		if !n.first[uint16(b[i])|uint16(b[i+1])<<8] {
			continue
		}
		for _, p := range n.parts[binary.LittleEndian.Uint64(b[i:])] {
			if p.bytes == [Part]byte(b[i:]) {
				found(p.name, i)
			}
		}
	}
}

// mapping is a range of addresses.
type mapping struct {
	from, to uint64
	line     string
}

// resident lists the readable mappings that have pages.
func resident(pid int) (list []mapping, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var m mapping
	readable := false
	for s := bufio.NewScanner(f); s.Scan(); err = s.Err() {
		line := s.Text()
		var kept uint64
		if word, rights, _ := strings.Cut(line, " "); strings.Contains(word, "-") {
			if _, err := fmt.Sscanf(word, "%x-%x", &m.from, &m.to); err != nil {
				return nil, fmt.Errorf("memscan: %q: %w", line, err)
			}
			m.line = strings.Join(strings.Fields(line), " ")
			readable = strings.HasPrefix(rights, "r") && !strings.Contains(line, "[v") // not vvar and vsyscall
		} else if _, err := fmt.Sscanf(line, "Rss: %d kB", &kept); err == nil && kept > 0 && readable {
			list = append(list, m)
		}
	}
	return list, err
}

const (
	pageSize = 4096
	atOnce   = 1024 // pages, of memory and of entries about them
)

// present calls each for the ranges of m whose pages are in memory or swapped out.
func (m mapping) present(pages io.ReaderAt, each func(from, to uint64) error) error {
	entries := make([]byte, atOnce*8)
	for at := m.from; at < m.to; {
		count := min((m.to-at)/pageSize, atOnce)
		if _, err := pages.ReadAt(entries[:count*8], int64(at/pageSize*8)); err != nil {
			return fmt.Errorf("memscan: reading about the pages of %s: %w", m.line, err)
		}
		begin := at
		for i := uint64(0); i <= count; i++ {
			page := at + i*pageSize
			if i < count && binary.LittleEndian.Uint64(entries[i*8:])>>62 != 0 {
				continue
			}
			if page > begin {
				if err := each(begin, page); err != nil {
					return err
				}
			}
			begin = page + pageSize
		}
		at += count * pageSize
	}
	return nil
}
