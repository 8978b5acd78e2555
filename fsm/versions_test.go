package fsm_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// TestVersionRules runs short histories of one secret. A step is "put", or
// "delete", "undelete" or "destroy" with numbers; "! CODE" after it is the
// result it must have. The state is written as its versions (d deleted,
// D destroyed), current and oldest. Rules are those of section 3.1 of the wire
// reference unless the case says otherwise.
func TestVersionRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		max   uint32
		steps string
		state string
		next  uint64
	}{
		{"the first put is 1", 10, "put", "1 | 1 1", 2},
		{"each put is current+1", 10, "put; put; put", "1 2 3 | 3 1", 4},
		{"over the limit the lowest go", 3, "put; put; put; put; put", "3 4 5 | 5 3", 6},
		{"a limit of one", 1, "put; put; put", "3 | 3 3", 4},
		{"delete nothing is the current", 10, "put; put; delete", "1 2d | 1 1", 2},
		{"delete 0 is the current", 10, "put; put; delete 0", "1 2d | 1 1", 2},
		{"delete an older one", 10, "put; put; put; delete 1", "1d 2 3 | 3 2", 4},
		{"the highest live one becomes current", 10, "put; put; put; delete 3 1", "1d 2 3d | 2 2", 3},
		{"delete all", 10, "put; put; delete 1 2", "1d 2d | 0 0", 3},
		{"missing numbers are ignored", 10, "put; delete 7", "1 | 1 1", 2},
		{"missing beside real ones", 10, "put; put; delete 9 2 2", "1 2d | 1 1", 2},
		{"delete the current of none", 10, "put; delete; delete", "1d | 0 0", 2},
		{"delete again", 10, "put; delete; delete 1", "1d | 0 0", 2},
		{"a deleted one with that number is replaced", 10, "put; put; put; delete 2 3; put", "1 2 3d | 2 1", 3},
		{"and the next one too", 10, "put; put; put; delete 2 3; put; put", "1 2 3 | 3 1", 4},
		{"wholly deleted: highest existing+1", 10, "put; put; delete 1 2; put", "1d 2d 3 | 3 3", 4},
		{"wholly deleted, at the limit", 2, "put; put; delete 1 2; put", "2d 3 | 3 2", 4},
		{"undelete nothing restores the highest", 10, "put; put; delete 1 2; undelete", "1d 2 | 2 2", 3},
		{"undelete 0 without a current one", 10, "put; delete; undelete 0 ! NOT_FOUND", "1d | 0 0", 2},
		{"undelete nothing with a live current", 10, "put; put; delete 1; undelete ! NOT_FOUND", "1d 2 | 2 2", 3},
		{"undelete 0 with a live current", 10, "put; undelete 0 ! NOT_FOUND", "1 | 1 1", 2},
		{"undelete explicit", 10, "put; put; put; delete 1 2 3; undelete 1 2", "1 2 3d | 2 1", 3},
		{"current = max(current, highest undeleted)", 10, "put; put; put; delete 1; undelete 1", "1 2 3 | 3 1", 4},
		{"undelete above the current", 10, "put; put; put; delete 3; undelete 3", "1 2 3 | 3 1", 4},
		{"undelete missing", 10, "put; delete; undelete 9 ! NOT_FOUND", "1d | 0 0", 2},
		{"undelete live", 10, "put; undelete 1 ! NOT_FOUND", "1 | 1 1", 2},
		// Destroy is not on the SPIKE wire.
		{"destroy the current", 10, "put; put; destroy 0", "1 2D | 1 1", 3},
		{"destroy an older one", 10, "put; put; put; destroy 1", "1D 2 3 | 3 2", 4},
		{"destroy a deleted one", 10, "put; delete; destroy 1", "1D | 0 0", 2},
		{"destroy missing", 10, "put; destroy 4", "1 | 1 1", 2},
		{"destroy nothing is malformed", 10, "put; destroy ! INVALID", "1 | 1 1", 2},
		{"a destroyed one cannot come back", 10, "put; destroy 1; undelete 1 ! NOT_FOUND", "1D | 0 0", 2},
		{"nor as the highest", 10, "put; put; delete 1; destroy 2; undelete", "1 2D | 1 1", 3},
		{"nor when all are", 10, "put; destroy 1; undelete ! NOT_FOUND", "1D | 0 0", 2},
		{"deleting a destroyed one changes nothing", 10, "put; put; destroy 1; delete 1", "1D 2 | 2 2", 3},
		{"a destroyed number never returns", 10, "put; put; put; destroy 3; put", "1 2 3D 4 | 4 1", 5},
		{"nor do the deleted below it", 10, "put; put; put; delete 2; destroy 3", "1 2d 3D | 1 1", 4},
		{"the deleted above it do", 10, "put; put; put; put; destroy 3; delete 4 2; put", "1 2d 3D 4 | 4 1", 5},
		{"nor after the destroyed one was pruned", 2, "put; destroy 1; put; put; delete 2 3; put", "3d 4 | 4 3", 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := founded(t, &fsmpb.Settings{MaxVersions: c.max})
			for i, step := range strings.Split(c.steps, ";") {
				step, code, _ := strings.Cut(step, "!")
				if code = strings.TrimSpace(code); code == "" {
					code = "OK"
				}
				words := strings.Fields(step)
				var numbers []uint64
				for _, w := range words[1:] {
					var n uint64
					if _, err := fmt.Sscan(w, &n); err != nil {
						t.Fatal(err)
					}
					numbers = append(numbers, n)
				}
				s := secret(m, "a")
				var command *fsmpb.Command
				switch words[0] {
				case "put":
					command = put("a", s.GetRevision(), fsm.NextVersion(s), fmt.Sprint("value ", i))
				case "delete":
					command = del("a", s.GetRevision(), numbers...)
				case "undelete":
					command = undel("a", s.GetRevision(), numbers...)
				case "destroy":
					command = destroy("a", s.GetRevision(), numbers...)
				default:
					t.Fatal(step)
				}
				want(t, do(t, m, at(int64(100+i), command)), fsmpb.Code(fsmpb.Code_value[code]))
			}
			s := secret(m, "a")
			if got := describe(s); got != c.state {
				t.Errorf("state %q, want %q", got, c.state)
			}
			if n := fsm.NextVersion(s); n != c.next {
				t.Errorf("next version %d, want %d", n, c.next)
			}
		})
	}
}

func describe(s *fsmpb.Secret) string {
	var b strings.Builder
	for _, v := range s.Versions {
		mark := ""
		switch {
		case v.Destroyed:
			mark = "D"
		case v.Deleted != 0:
			mark = "d"
		}
		fmt.Fprintf(&b, "%d%s ", v.Version, mark)
	}
	fmt.Fprintf(&b, "| %d %d", s.Current, s.Oldest)
	return b.String()
}

func TestTimesAndValues(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	r := do(t, m, at(10, put("a", 0, 1, "one")))
	if r.Version != 1 || r.Revision == 0 || r.Index != 2 {
		t.Fatal(r)
	}
	r = do(t, m, at(20, put("a", r.Revision, 2, "two")))
	r = do(t, m, at(30, del("a", r.Revision, 2, 1)))
	if fmt.Sprint(r.Versions) != "[1 2]" {
		t.Fatal(r)
	}
	r = do(t, m, at(40, del("a", r.Revision, 1))) // again: renews the time
	s := secret(m, "a")
	if s.Versions[0].Deleted != 40 || s.Versions[1].Deleted != 30 || s.Created != 10 || s.Updated != 40 {
		t.Fatal(s)
	}
	r = do(t, m, at(50, destroy("a", r.Revision, 1))) // keeps the time of deletion
	r = do(t, m, at(60, undel("a", r.Revision)))
	if fmt.Sprint(r.Versions) != "[2]" {
		t.Fatal(r)
	}
	before := r.Revision
	r = do(t, m, at(70, del("a", r.Revision, 1))) // destroyed: nothing to change
	if r.Code != fsmpb.Code_OK || r.Revision != before || len(r.Versions) != 0 {
		t.Fatal(r)
	}
	r = do(t, m, at(80, destroy("a", r.Revision, 0)))
	s = secret(m, "a")
	for i, want := range []int64{40, 80} {
		v := s.Versions[i]
		if !v.Destroyed || v.Value != nil || v.Deleted != want || v.Created != int64(10*(i+1)) {
			t.Errorf("version %d: %v", i+1, v)
		}
	}
	// A clock that stands at zero deletes all the same.
	r = do(t, m, put("a", r.Revision, 3, "three"))
	do(t, m, del("a", r.Revision))
	if s := secret(m, "a"); s.Current != 0 || s.Versions[2].Deleted == 0 {
		t.Fatal(s)
	}
}

func TestRevisionsNeverReturn(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	first := do(t, m, put("a", 0, 1, "one"))
	// Purged and created again within one entry: what was decided on the first
	// secret must not hold for the second.
	r := apply(t, m, 3, encode(t, purge("a", first.Revision)), encode(t, put("a", 0, 1, "uno")),
		encode(t, put("a", first.Revision, 2, "two")))
	want(t, r[0], fsmpb.Code_OK)
	want(t, r[1], fsmpb.Code_OK)
	want(t, r[2], fsmpb.Code_CONFLICT)
	if cur := r[2].Current; cur.SecretRevision != r[1].Revision || cur.CurrentVersion != 1 || cur.NextVersion != 2 {
		t.Fatal(cur)
	}
	if r[1].Revision <= first.Revision {
		t.Fatal("revision returned")
	}
}

func TestMaxVersionsIsFrozenAtCreation(t *testing.T) {
	t.Parallel()
	m := founded(t, &fsmpb.Settings{MaxVersions: 2})
	c := put("b", 0, 1, "x")
	c.GetPutSecret().MaxVersions = 3
	rb := do(t, m, c).Revision
	ra := do(t, m, put("a", 0, 1, "x")).Revision
	want(t, do(t, m, putSettings(m.View().SettingsRevision(), &fsmpb.Settings{MaxVersions: 5})), fsmpb.Code_OK)
	for n := uint64(2); n < 8; n++ {
		c := put("a", ra, n, "x")
		c.GetPutSecret().MaxVersions = 9 // only used when the secret is new
		ra = do(t, m, c).Revision
		rb = do(t, m, put("b", rb, n, "x")).Revision
	}
	if a, b := len(secret(m, "a").Versions), len(secret(m, "b").Versions); a != 2 || b != 3 {
		t.Fatal(a, b)
	}
}
