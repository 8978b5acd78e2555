package fsm_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

var update = flag.Bool("update", false, "write the golden files anew; review what changed")

const (
	goldenLog      = "testdata/log.txt"
	goldenSnapshot = "testdata/snapshot.bin"
	firstSnapshot  = "testdata/snapshot-level1.bin" // of a build that knew level 1 alone
	secondSnapshot = "testdata/snapshot-level2.bin" // of one that knew levels 1 and 2
)

// step is one command of the golden log, with what it is there to show.
type step struct {
	about   string
	command []byte
}

// story has every operation and every code, in order. Each inner list is one
// Raft entry. Revisions are written as numbers, so the story reads as what
// writers would have known.
func story(t *testing.T) [][]step {
	from := archived(t).View()
	staged := chunks(1, from, 900)
	other := chunks(2, from, 400) // begun last, and not committed: part of the golden snapshot
	commitStaged := commitRestore(1, from, fsm.New(fsm.Options{}))
	commitStaged.GetCommitRestore().Keyring = replace(7, "sealed keyring", "keyring 3", 7).GetReplaceKeyring()
	one := func(about string, c *fsmpb.Command) []step { return []step{{about, encode(t, c)}} }
	policies := uint64(2)
	basis := put("a", 3, 2, "two")
	basis.Basis = &fsmpb.Basis{PolicyRevision: &policies}
	reused := with(1, 2, putPolicy("p", 0, "x"))
	reused.WriteId.Request = []byte("another request")
	list := [][]step{
		one("nothing before founding", put("a", 0, 1, "one")),
		one("found, with a window of three results", at(1000, found(&fsmpb.Settings{MaxVersions: 3, WindowEntries: 3,
			SecretLimitBytes: 100, StateLimitBytes: 4096, IndexReads: true}))),
		one("found again", found(nil)),
		one("begin the first share set", begin(1, nil)),
		one("a retry supersedes it", begin(2, nil)),
		one("commit of the superseded one", commit(1)),
		one("commit", commit(2)),
		one("a policy", with(1, 2, at(2000, putPolicy("p", 0, "sealed policy")))),
		{
			{"two commands in one entry: a secret", encode(t, with(2, 7, at(3000, put("a", 0, 1, "one"))))},
			{"and a retry of the one before", encode(t, with(1, 2, putPolicy("p", 0, "sealed again")))},
		},
		one("a write id for another request", reused),
		one("put under another number", put("a", 3, 3, "two")),
		one("put; policies have not moved since", at(4000, basis)),
		one("put; the seal has another generation", func() *fsmpb.Command {
			c, g := put("a", 4, 3, "three"), uint64(9)
			c.Basis = &fsmpb.Basis{SealGeneration: &g}
			return c
		}()),
		one("too large", put("a", 4, 3, strings.Repeat("x", 101))),
		one("put", at(5000, put("a", 4, 3, "three"))),
		one("put: version 1 goes", with(3, 12, at(6000, put("a", 5, 4, "four")))),
		one("delete the current", at(7000, del("a", 6))),
		one("destroy one of two", at(8000, destroy("a", 7, 3, 9))),
		one("undelete what is destroyed", undel("a", 8, 3)),
		one("undelete", at(9000, undel("a", 8, 4))),
		one("another secret", with(4, 19, at(10000, put("b", 0, 1, "b")))),
		one("the window has forgotten the first id", with(1, 2, putPolicy("p", 2, "x"))),
		one("delete all", at(11000, del("b", 10, 1))),
		one("full", putPolicy("q", 0, strings.Repeat("x", 4000))),
		one("anchor", at(12000, anchor("nexus-1", 5))),
		one("anchor further back", anchor("nexus-1", 4)),
		one("seal", setSeal(true, 0)),
		one("nothing while sealed", purge("b", 11)),
		one("unseal", setSeal(false, 1)),
		one("not there", purge("c", 1)),
		one("purge", at(13000, purge("b", 11))),
		one("a second policy", at(14000, putPolicy("q", 0, "q"))),
		one("delete a policy", delPolicy("p", 2)),
		one("settings", putSettings(1, &fsmpb.Settings{MaxVersions: 5, WindowEntries: 2})),
		one("begin a rekey", begin(3, shareID(2))),
		one("a transaction", with(5, 35, at(15000, all(put("t", 0, 1, "t"), put("a", 9, 5, "five"), put("u", 0, 1, "u"))))),
		one("a retry of it", with(5, 35, all(put("t", 0, 1, "t")))),
		one("a transaction of which the second cannot be", all(put("t", 16, 2, "t"), put("u", 16, 2, "u"))),
		one("delete, destroy and purge at once", at(16000, all(del("t", 16), destroy("u", 18, 1), purge("a", 17)))),
		one("one secret twice", all(put("t", 19, 2, "t"), purge("t", 19))),
		{{"malformed", []byte{0x08, 0x01, 0xff}}},
		{},
		one("level 2 before the cluster has it", level(2, putPolicy("r", 0, "r"))),
		{{"what only level 2 has, at level 1", encode(t, level(1, raise(2)))}},
		one("raise the level", raise(2)),
		one("raise it again", raise(2)),
		one("level 2", level(2, putPolicy("r", 0, "r"))),
		one("level 1 still", putPolicy("s", 0, "s")),
		one("another keyring while a share set is pending", replace(2, "sealed keyring", "keyring 2", 4)),
		one("commit the rekey", commit(3)),
		one("another keyring under a root key of before", replace(2, "sealed keyring", "keyring 2", 4)),
		one("in the place of another", replace(3, "keyring 0", "keyring 2", 4)),
		one("another keyring", replace(3, "sealed keyring", "keyring 2", 4)),
		one("a secret of two versions", put("v", 0, 1, "one")),
		one("the second", put("v", 24, 2, "two")),
		one("reseal: one that moved, two that have not, a number that is none", at(17000, reseal(
			resealed("v", 24, 1, "1"), resealed("v", 25, 1, "ONE"), resealed("v", 25, 2, "TWO"), resealed("v", 25, 3, "3")))),
		one("reseal under an epoch of before", func() *fsmpb.Command {
			c := reseal(resealed("v", 25, 1, "uno"))
			c.Basis = &fsmpb.Basis{DataEpoch: []byte{3, 1}}
			return c
		}()),
		one("destroy one", destroy("v", 25, 1)),
		one("reseal what is destroyed", reseal(resealed("v", 26, 1, "uno"))),
		one("reseal a policy", resealPolicy("s", 23, "S")),
		one("begin another rekey", begin(5, shareID(3))),
		one("abandon what is not pending", abandon(3)),
		one("abandon it", abandon(5)),
		one("commit of the abandoned one", commit(5)),
		one("begin a rekey of a recovered cluster", begin(6, shareID(3))),
		one("commit it for a higher incarnation", commitFor(6, 0x7fffffff_00000000)),
		one("the same again", begin(7, shareID(6))),
		one("commit it for a lower incarnation", commitFor(7, 1)),
		one("commit it for that incarnation", commitFor(7, 0x7fffffff_00000000)),
		{{"a drill at level 2", encode(t, level(2, drill(1, "")))}},
		one("a drill before the cluster has the level", drill(1, "")),
		one("the care of archives before it has the level", putSettings(15, &fsmpb.Settings{Archive: &fsmpb.ArchiveCare{Daily: 7}})),
		one("raise the level to 3", raise(3)),
		one("a drill", at(18000, drill(1, ""))),
		one("the same again", drill(1, "")),
		one("one that failed", at(19000, drill(2, "a record does not open"))),
		one("the care of archives", putSettings(15, &fsmpb.Settings{MaxVersions: 5, WindowEntries: 2, Archive: &fsmpb.ArchiveCare{
			SnapshotSeconds: 1800, DrillSeconds: proto.Uint64(0), Hourly: 24, Daily: 7, Minimum: 3}})),
		one("begin a restore", beginRestore(1, from)),
		one("a chunk too early", staged[1]),
		one("its first chunk", staged[0]),
		one("the same again", staged[0]),
		one("a chunk of another restore", other[0]),
		one("commit what is not whole", commitStaged),
	}
	for _, c := range staged[1:] {
		list = append(list, one("the next chunk", c))
	}
	before := proto.Clone(commitStaged).(*fsmpb.Command)
	before.GetCommitRestore().Keyring.Replaces = make([]byte, 32)
	list = append(list, one("commit with a keyring made of another", before), one("commit", commitStaged), one("the same again", commitStaged),
		one("a write after it", put("new", 0, 1, "x")), one("begin another restore", beginRestore(2, from)))
	for _, c := range other[:len(other)-1] {
		list = append(list, one("a chunk of it", c))
	}
	return append(list, one("begin a third", beginRestore(3, from)), one("abandon the second", abandonRestore(2)), one("abandon the third", abandonRestore(3)),
		one("begin the second again", beginRestore(2, from)), one("its first chunk", other[0]), one("its second", other[1]))
}

func level(n uint32, c *fsmpb.Command) *fsmpb.Command {
	c.Level = n
	return c
}

func raise(n uint32) *fsmpb.Command {
	return &fsmpb.Command{Op: &fsmpb.Command_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: n}}}
}

// TestGoldenLog applies the commands of testdata/log.txt, not those of story:
// what lies in anybody's log must keep its results and hashes for ever.
//
//	# comment
//	entry INDEX TERM
//	> HEX of a command
//	< HEX of its result
//	= DATA-HASH ALL-HASH SIZE
func TestGoldenLog(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	b, err := os.ReadFile(goldenLog)
	if err != nil {
		t.Fatal(err)
	}
	m := fsm.New(fsm.Options{})
	var index, term uint64
	var commands, results [][]byte
	codes := map[fsmpb.Code]bool{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		mark, rest, _ := strings.Cut(lines.Text(), " ")
		var raw []byte
		if mark == ">" || mark == "<" {
			if raw, err = hex.DecodeString(rest); err != nil {
				t.Fatal(n, err)
			}
		}
		switch mark {
		case "entry":
			if _, err := fmt.Sscan(rest, &index, &term); err != nil {
				t.Fatal(n, err)
			}
			commands, results = nil, nil
		case ">":
			commands = append(commands, raw)
		case "<":
			results = append(results, raw)
		case "=":
			got, err := m.Apply(index, term, commands)
			if err != nil {
				t.Fatal(n, err)
			}
			for i, r := range got {
				pb, _ := fsm.DecodeResult(r)
				codes[pb.Code] = true
				if !bytes.Equal(r, results[i]) {
					t.Errorf("%s:%d: command %d of entry %d gave %v", goldenLog, n, i, index, pb)
				}
			}
			if state := stateLine(m.View()); state != rest {
				t.Fatalf("%s:%d: state after entry %d is %s", goldenLog, n, index, state)
			}
		}
	}
	for code, name := range fsmpb.Code_name {
		if code != 0 && !codes[fsmpb.Code(code)] {
			t.Errorf("no command gives %s", name)
		}
	}

	golden, err := os.ReadFile(goldenSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, snapshot(t, m.View())) {
		t.Errorf("the snapshot is not %s", goldenSnapshot)
	}
	restored := fsm.New(fsm.Options{})
	if err := restored.Restore(bytes.NewReader(golden)); err != nil {
		t.Fatal(err)
	}
	equal(t, m.View(), restored.View())
}

// A snapshot of an earlier level is read, and written as it was.
func TestGoldenSnapshotOfLevel1(t *testing.T) {
	t.Parallel()
	for name, level := range map[string]uint32{firstSnapshot: 1, secondSnapshot: 2} {
		golden, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		m := fsm.New(fsm.Options{})
		if err := m.Restore(bytes.NewReader(golden)); err != nil {
			t.Fatal(err)
		}
		if m.View().Level() != level || !bytes.Equal(golden, snapshot(t, m.View())) {
			t.Errorf("%s: at level %d it is written anew as another", name, m.View().Level())
		}
	}
}

// Nothing newer than the cluster's level is applied, before it is raised; a build
// that does not know a level stops where it is raised to it.
func TestLevels(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	if m.View().Level() != fsm.FirstLevel {
		t.Fatal(m.View().Level())
	}
	if r := do(t, m, level(2, put("a", 0, 1, "x"))); r.Code != fsmpb.Code_LEVEL_TOO_LOW {
		t.Fatal(r)
	}
	_, before := m.View().Hashes()
	if r := do(t, m, raise(2)); r.Code != fsmpb.Code_OK || m.View().Level() != 2 {
		t.Fatal(r, m.View().Level())
	}
	if _, after := m.View().Hashes(); after == before {
		t.Error("the level is not in the hash")
	}
	restored := fsm.New(fsm.Options{})
	if err := restored.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil || restored.View().Level() != 2 {
		t.Fatal(err, restored.View().Level())
	}
	equal(t, m.View(), restored.View())
	if r := do(t, m, level(2, put("a", 0, 1, "x"))); r.Code != fsmpb.Code_OK {
		t.Fatal(r)
	}
	var unknown *fsm.ErrUnknownLevel
	if _, err := m.Apply(m.View().Index()+1, 1, [][]byte{encode(t, raise(fsm.Level+1))}); !errors.As(err, &unknown) {
		t.Fatal(err)
	}
}

func stateLine(v *fsm.View) string {
	data, all := v.Hashes()
	size, _ := v.Size()
	return fmt.Sprintf("%x %x %d", data, all, size)
}

func writeGolden(t *testing.T) {
	var out bytes.Buffer
	fmt.Fprintln(&out, "# Commands of every kind with their results and the state after each entry.")
	fmt.Fprintln(&out, "# Written by go test -run GoldenLog -update; at a released level nothing here may change.")
	m := fsm.New(fsm.Options{})
	for i, entry := range story(t) {
		index, term := uint64(i+1), uint64(1+i/10)
		fmt.Fprintf(&out, "\nentry %d %d\n", index, term)
		var commands [][]byte
		for _, s := range entry {
			commands = append(commands, s.command)
		}
		results, err := m.Apply(index, term, commands)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range entry {
			r, err := fsm.DecodeResult(results[i])
			if err != nil {
				t.Fatal(err)
			}
			r.Current = nil
			text := strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(r)), " ")
			fmt.Fprintf(&out, "# %s: %s\n> %x\n< %x\n", s.about, text, s.command, results[i])
		}
		fmt.Fprintln(&out, "=", stateLine(m.View()))
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{goldenLog: out.Bytes(), goldenSnapshot: snapshot(t, m.View())} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
