package fsm_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// model is secrets and their versions, written as naively as possible: maps,
// and every derived number computed anew from the wire reference's sentences.
type model struct {
	max     int
	secrets map[string]*modelSecret
}

type modelSecret struct {
	versions map[uint64]*modelVersion
	current  uint64
}

type modelVersion struct {
	value              string
	deleted, destroyed bool
}

func (s *modelSecret) numbers() (ns []uint64) {
	for n := range s.versions {
		ns = append(ns, n)
	}
	slices.Sort(ns)
	return ns
}

func (s *modelSecret) highest(is func(*modelVersion) bool) (h uint64) {
	for n, v := range s.versions {
		if is(v) && n > h {
			h = n
		}
	}
	return h
}

func live(v *modelVersion) bool { return !v.deleted && !v.destroyed }

func (m *model) put(name, value string) uint64 {
	s := m.secrets[name]
	if s == nil {
		s = &modelSecret{versions: map[uint64]*modelVersion{}}
		m.secrets[name] = s
	}
	n := s.current + 1
	if s.current == 0 {
		n = s.highest(func(*modelVersion) bool { return true }) + 1
	}
	n = max(n, s.highest(func(v *modelVersion) bool { return v.destroyed })+1)
	s.versions[n] = &modelVersion{value: value}
	s.current = n
	for len(s.versions) > m.max {
		delete(s.versions, s.numbers()[0])
	}
	return n
}

func (m *model) change(op, name string, numbers []uint64) (code fsmpb.Code, changed []uint64) {
	s := m.secrets[name]
	if s == nil {
		return fsmpb.Code_NOT_FOUND, nil
	}
	if len(numbers) == 0 {
		numbers = []uint64{0}
		if op == "undelete" && s.current == 0 {
			numbers = []uint64{s.highest(func(v *modelVersion) bool { return !v.destroyed })}
		}
	}
	for _, n := range numbers {
		if n == 0 {
			n = s.current
		}
		v := s.versions[n]
		if v == nil || v.destroyed || op == "undelete" && !v.deleted {
			continue
		}
		if !slices.Contains(changed, n) {
			changed = append(changed, n)
		}
		switch op {
		case "delete":
			v.deleted = true
		case "destroy":
			v.destroyed, v.value = true, ""
		case "undelete":
			v.deleted = false
		}
	}
	slices.Sort(changed)
	if op == "undelete" && len(changed) == 0 {
		return fsmpb.Code_NOT_FOUND, nil
	}
	s.current = s.highest(live)
	return fsmpb.Code_OK, changed
}

func (m *model) reseal(name string, stands bool, list []*fsmpb.ResealedVersion) uint64 {
	replaced := map[uint64]bool{}
	if s := m.secrets[name]; s != nil && stands {
		for _, r := range list {
			if v := s.versions[r.Version]; v != nil && !v.destroyed {
				v.value = string(r.Value)
				replaced[r.Version] = true
			}
		}
	}
	return uint64(len(replaced))
}

func (m *model) clone() *model {
	n := &model{max: m.max, secrets: map[string]*modelSecret{}}
	for name, s := range m.secrets {
		c := &modelSecret{versions: map[uint64]*modelVersion{}, current: s.current}
		for i, v := range s.versions {
			copied := *v
			c.versions[i] = &copied
		}
		n.secrets[name] = c
	}
	return n
}

// transaction draws operations on several secrets, some of them impossible, and
// does them all or none.
func (m *model) transaction(t *rapid.T, names []string, machine *fsm.Machine, index uint64) (*fsmpb.Command, func(*fsmpb.Result)) {
	before := m.clone()
	var commands []*fsmpb.Command
	results := make([]*fsmpb.OperationResult, len(names))
	failed := 0
	code := fsmpb.Code_OK
	fail := func(i int, c fsmpb.Code) {
		if failed == 0 {
			failed, code = i+1, c
		}
	}
	for i, name := range names {
		s := secret(machine, name)
		revision := s.GetRevision()
		stale := rapid.IntRange(0, 5).Draw(t, "stale") == 0
		if stale {
			revision += 1 << 40
		}
		results[i] = &fsmpb.OperationResult{}
		kind := rapid.SampledFrom([]string{"put", "put", "delete", "destroy", "purge"}).Draw(t, "operation")
		switch {
		case kind == "put":
			value := fmt.Sprint("transaction ", index, name)
			commands = append(commands, put(name, revision, fsm.NextVersion(s), value))
			results[i].Version = m.put(name, value)
			if stale {
				fail(i, fsmpb.Code_CONFLICT)
			}
			continue
		case kind == "purge":
			commands = append(commands, purge(name, revision))
			delete(m.secrets, name)
		default:
			numbers := rapid.SliceOfN(rapid.Uint64Range(0, 6), 1, 3).Draw(t, "numbers")
			build := map[string]func(string, uint64, ...uint64) *fsmpb.Command{"delete": del, "destroy": destroy}[kind]
			commands = append(commands, build(name, revision, numbers...))
			_, results[i].Versions = m.change(kind, name, numbers)
		}
		if s == nil {
			fail(i, fsmpb.Code_NOT_FOUND)
		} else if stale {
			fail(i, fsmpb.Code_CONFLICT)
		}
	}
	if failed > 0 {
		*m = *before
	}
	return all(commands...), func(r *fsmpb.Result) {
		want(t, r, code)
		if int(r.Operation) != failed {
			t.Fatal("operation: ", r.Operation, failed)
		}
		if failed > 0 {
			if len(r.Current.Secrets) != len(names) {
				t.Fatal("a rejection has not the present state of each secret")
			}
			return
		}
		for i, o := range r.Operations {
			if o.Version != results[i].Version || !slices.Equal(o.Versions, results[i].Versions) {
				t.Fatal("operation result: ", o, results[i])
			}
		}
	}
}

func (m *model) check(t *rapid.T, v *fsm.View) {
	if v.SecretCount() != len(m.secrets) {
		t.Fatal("secrets: ", v.SecretCount(), len(m.secrets))
	}
	for name, s := range m.secrets {
		r, ok := v.Secret(fsm.Token(token(name)))
		if !ok {
			t.Fatal("missing: ", name)
		}
		if r.Current != s.current || len(r.Versions) != len(s.versions) {
			t.Fatal("current or count: ", name, r, s)
		}
		for i, n := range s.numbers() {
			v, w := s.versions[n], r.Versions[i]
			if w.Version != n || string(w.Value) != v.value || w.Destroyed != v.destroyed || (w.Deleted == 0) != live(v) {
				t.Fatal("version: ", name, n, w)
			}
		}
	}
}

// TestModel runs random histories against the model, while a second machine is
// given the same entries and is now and then thrown away and restored from the
// first one's snapshot. Both must agree in every byte at every index, and what
// observers are told must add up to the state.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		settings := &fsmpb.Settings{MaxVersions: uint32(rapid.IntRange(1, 4).Draw(t, "max")),
			WindowEntries: uint64(rapid.IntRange(4, 12).Draw(t, "window"))} // more than an entry has commands
		m, twin := founded(t, settings), founded(t, settings)
		for _, x := range []*fsm.Machine{m, twin} {
			want(t, do(t, x, raise(2)), fsmpb.Code_OK)
		}
		mod := &model{max: int(settings.MaxVersions), secrets: map[string]*modelSecret{}}
		told := map[fsm.Token]*fsmpb.Secret{}
		_, stop := m.Observe(changed(func(d fsm.Delta) {
			for _, c := range d.Secrets {
				if told[c.Token] != c.Old {
					t.Fatal("old is not what was told before")
				}
				if told[c.Token] = c.New; c.New == nil {
					delete(told, c.Token)
				}
			}
		}))
		defer stop()

		type kept struct {
			command []byte
			result  *fsmpb.Result
			index   uint64
		}
		var retries []kept
		nextID := byte(0)
		for range rapid.IntRange(1, 40).Draw(t, "entries") {
			var entry [][]byte
			var checks []func(*fsmpb.Result)
			index := m.View().Index() + uint64(rapid.IntRange(1, 3).Draw(t, "gap"))
			used := map[string]bool{} // revisions within one entry cannot be known
			for range rapid.IntRange(0, 4).Draw(t, "commands") {
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
				kind := rapid.SampledFrom([]string{"put", "put", "put", "delete", "undelete", "destroy", "purge", "policy", "anchor", "retry", "transaction", "transaction", "reseal", "reseal"}).Draw(t, "kind")
				if used[name] && kind != "retry" {
					continue
				}
				used[name] = true
				s := secret(m, name)
				numbers := rapid.SliceOfN(rapid.Uint64Range(0, 6), 0, 3).Draw(t, "numbers")
				var c *fsmpb.Command
				check := func(r *fsmpb.Result) { want(t, r, fsmpb.Code_OK) }
				switch kind {
				case "put":
					value := fmt.Sprint("value ", index)
					c = put(name, s.GetRevision(), fsm.NextVersion(s), value)
					n := mod.put(name, value)
					check = func(r *fsmpb.Result) {
						want(t, r, fsmpb.Code_OK)
						if r.Version != n {
							t.Fatal("version: ", r.Version, n)
						}
					}
				case "delete", "undelete", "destroy":
					if kind == "destroy" && len(numbers) == 0 {
						continue
					}
					build := map[string]func(string, uint64, ...uint64) *fsmpb.Command{"delete": del, "undelete": undel, "destroy": destroy}[kind]
					c = build(name, s.GetRevision(), numbers...)
					code, versions := mod.change(kind, name, numbers)
					check = func(r *fsmpb.Result) {
						want(t, r, code)
						if !slices.Equal(r.Versions, versions) {
							t.Fatal("versions: ", r.Versions, versions)
						}
					}
				case "purge":
					c = purge(name, s.GetRevision())
					if _, ok := mod.secrets[name]; !ok {
						check = func(r *fsmpb.Result) { want(t, r, fsmpb.Code_NOT_FOUND) }
					}
					delete(mod.secrets, name)
				case "transaction":
					names := []string{name}
					for _, other := range []string{"a", "b", "c"} {
						if !used[other] && rapid.Bool().Draw(t, "and") {
							names, used[other] = append(names, other), true
						}
					}
					c, check = mod.transaction(t, names, m, index)
				case "reseal":
					revision := s.GetRevision()
					if rapid.IntRange(0, 3).Draw(t, "moved") == 0 {
						revision++
					}
					var list []*fsmpb.ResealedVersion
					for _, n := range append(numbers, 1) {
						list = append(list, resealed(name, max(1, revision), n+1, fmt.Sprint("resealed ", index)))
					}
					c = reseal(list...)
					n := mod.reseal(name, revision == s.GetRevision(), list)
					before := s
					check = func(r *fsmpb.Result) {
						want(t, r, fsmpb.Code_OK)
						if r.Resealed != n {
							t.Fatal("resealed: ", r.Resealed, n)
						}
						after := secret(m, name)
						if after.GetRevision() != before.GetRevision() || after.GetUpdated() != before.GetUpdated() || after.GetOldest() != before.GetOldest() {
							t.Fatal("a reseal changed more than values: ", before, after)
						}
						for i, v := range after.GetVersions() {
							if w := before.Versions[i]; v.Created != w.Created || v.Deleted != w.Deleted {
								t.Fatal("a reseal changed times: ", before, after)
							}
						}
					}
				case "policy":
					p, _ := m.View().Policy(fsm.Token(token(name)))
					c = putPolicy(name, p.GetRevision(), fmt.Sprint("policy ", index))
				case "anchor":
					a, _ := m.View().Anchor(name)
					c = anchor(name, a.GetCount()+1)
				case "retry":
					if len(retries) == 0 {
						continue
					}
					k := rapid.SampledFrom(retries).Draw(t, "retry")
					entry = append(entry, k.command)
					checks = append(checks, func(r *fsmpb.Result) {
						switch r.Code {
						case fsmpb.Code_OK:
							if r.Replayed = false; !proto.Equal(r, k.result) {
								t.Fatal("replayed ", r, " first ", k.result)
							}
						case fsmpb.Code_WINDOW_EXPIRED:
							if k.index >= r.Current.WindowFloor {
								t.Fatal("refused above the floor")
							}
						default:
							t.Fatal("a retry gave ", r)
						}
					})
					continue
				}
				c = at(int64(index), c)
				if kind != "reseal" && rapid.Bool().Draw(t, "write id") {
					nextID++
					published := m.View().Index()
					c = with(nextID, published, c)
					inner, raw := check, encode(t, c)
					check = func(r *fsmpb.Result) {
						if r.Code == fsmpb.Code_WINDOW_EXPIRED {
							t.Fatal("a first attempt was refused: ", published, r.Current.WindowFloor)
						}
						if inner(r); r.Code == fsmpb.Code_OK {
							retries = append(retries, kept{raw, r, published})
						}
					}
				}
				entry = append(entry, encode(t, c))
				checks = append(checks, check)
			}
			raw, err := m.Apply(index, 2, entry)
			if err != nil {
				t.Fatal(err)
			}
			same, err := twin.Apply(index, 2, entry)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(raw, same, bytes.Equal) {
				t.Fatal("machines gave different results")
			}
			for i, b := range raw {
				r, err := fsm.DecodeResult(b)
				if err != nil {
					t.Fatal(err)
				}
				checks[i](r)
			}
			mod.check(t, m.View())
			equal(t, m.View(), twin.View())
			if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
				twin = fsm.New(fsm.Options{})
				if err := twin.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
					t.Fatal(err)
				}
				equal(t, m.View(), twin.View())
			}
			if len(told) != m.View().SecretCount() {
				t.Fatal("deltas do not add up")
			}
			for s := range m.View().Secrets() {
				if told[fsm.Token(s.Token)] != s {
					t.Fatal("deltas do not add up")
				}
			}
		}
	})
}
