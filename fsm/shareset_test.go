package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// TestShareSetModel runs random histories of share sets against sentences: what
// is pending is what was begun last and neither committed nor abandoned since;
// only that is committed; keyrings move only while nothing is pending; the
// incarnation never falls; and whatever carries a generation of the seal is
// refused under another one. A second machine restored at any time agrees.
func TestShareSetModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := founded(t, nil)
		want(t, do(t, m, raise(2)), fsmpb.Code_OK)
		var pending, committed byte
		keyring, incarnation, generation, sealed := "", uint64(1), uint64(0), false
		for range rapid.IntRange(1, 40).Draw(t, "commands") {
			n := byte(rapid.IntRange(1, 5).Draw(t, "set"))
			code := fsmpb.Code_OK
			var c *fsmpb.Command
			var then func()
			switch rapid.SampledFrom([]string{"begin", "begin", "commit", "commit", "abandon", "replace", "seal"}).Draw(t, "kind") {
			case "begin":
				on := byte(rapid.SampledFrom([]byte{committed, committed, 9}).Draw(t, "supersedes"))
				var supersedes []byte
				if on != 0 {
					supersedes = shareID(on)
				}
				c, then = begin(n, supersedes), func() { pending = n }
				if on != committed || n == committed {
					code = fsmpb.Code_CONFLICT
				}
			case "commit":
				to := rapid.Uint64Range(0, 4).Draw(t, "incarnation")
				c = commitFor(n, to)
				then = func() {
					pending, committed, keyring, incarnation = 0, n, "sealed keyring", max(incarnation, to)
				}
				switch {
				case n != pending:
					code = fsmpb.Code_SUPERSEDED
				case to != 0 && to < incarnation:
					code = fsmpb.Code_CONFLICT
				}
			case "abandon":
				c, then = abandon(n), func() { pending = 0 }
				if n != pending {
					code = fsmpb.Code_SUPERSEDED
				}
			case "replace":
				c, then = replace(n, keyring, keyring+"+", 4), func() { keyring += "+" }
				switch {
				case sealed:
					code = fsmpb.Code_SEALED
				case pending != 0 || n != committed:
					code = fsmpb.Code_CONFLICT
				}
			case "seal":
				to := !sealed
				c, then = setSeal(to, generation), func() { sealed, generation = to, generation+1 }
			}
			if rapid.Bool().Draw(t, "basis") {
				on := rapid.SampledFrom([]uint64{generation, generation, generation + 1}).Draw(t, "generation")
				c.Basis = &fsmpb.Basis{SealGeneration: &on}
				if on != generation {
					code = fsmpb.Code_BASIS_MOVED
				}
			}
			want(t, do(t, m, c), code)
			if code == fsmpb.Code_OK {
				then()
			}
			s := m.View().Seal()
			of := func(n byte) []byte {
				if n == 0 {
					return nil
				}
				return shareID(n)
			}
			_, at := m.View().Cluster()
			if !bytes.Equal(s.Pending.GetId(), of(pending)) || !bytes.Equal(s.Committed.GetId(), of(committed)) || at != incarnation ||
				sha256.Sum256(s.Keyring) != sha256.Sum256([]byte(keyring)) || s.Sealed != sealed || s.Generation != generation {
				t.Fatal("state: ", s, at, "; wanted ", pending, committed, keyring, incarnation, sealed, generation)
			}
			restored := fsm.New(fsm.Options{})
			if err := restored.Restore(bytes.NewReader(snapshot(t, m.View()))); err != nil {
				t.Fatal(err)
			}
			equal(t, m.View(), restored.View())
		}
	})
}
