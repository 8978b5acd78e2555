package fsm_test

import (
	"bytes"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

var clusterID = bytes.Repeat([]byte{0xC1}, 16)

func encode(t interface {
	Helper()
	Fatal(...any)
}, c *fsmpb.Command) []byte {
	t.Helper()
	b, err := fsm.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// founded returns a machine founded at index 1.
func founded(t interface {
	Helper()
	Fatal(...any)
}, s *fsmpb.Settings) *fsm.Machine {
	t.Helper()
	m := fsm.New(fsm.Options{})
	r := apply(t, m, 1, encode(t, foundCommand(s)))
	if r[0].Code != fsmpb.Code_OK {
		t.Fatal("not founded: ", r[0])
	}
	return m
}

func foundCommand(s *fsmpb.Settings) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_Found{Found: &fsmpb.Found{
		ClusterId: clusterID, Incarnation: 1, Settings: s}}}
}

// apply applies one entry and decodes its results.
func apply(t interface {
	Helper()
	Fatal(...any)
}, m *fsm.Machine, index uint64, commands ...[]byte) []*fsmpb.Result {
	t.Helper()
	raw, err := m.Apply(index, 1, commands)
	if err != nil {
		t.Fatal(err)
	}
	results := make([]*fsmpb.Result, len(raw))
	for i, b := range raw {
		if results[i], err = fsm.DecodeResult(b); err != nil {
			t.Fatal(err)
		}
	}
	return results
}

// do applies one command in an entry of its own.
func do(t interface {
	Helper()
	Fatal(...any)
}, m *fsm.Machine, c *fsmpb.Command) *fsmpb.Result {
	t.Helper()
	return apply(t, m, m.View().Index()+1, encode(t, c))[0]
}
