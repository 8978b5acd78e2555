//go:build failpoints

package failpoint

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDiesAtTheNamedHit(t *testing.T) {
	var died []Name
	armed.die = func(n Name) { died = append(died, n) }
	armed.left = parse("seal.commit.before@2,keeper.place.after")
	Hit(SealCommitAfter)
	Hit(SealCommitBefore)
	if len(died) != 0 {
		t.Fatalf("died early, at %v", died)
	}
	Hit(SealCommitBefore)
	Hit(SealCommitBefore)
	Hit(KeeperPlaceAfter)
	if len(died) != 2 || died[0] != SealCommitBefore || died[1] != KeeperPlaceAfter {
		t.Fatalf("died at %v, want once at each of the two", died)
	}
}

func TestDiesOfAFileOnce(t *testing.T) {
	var died []Name
	armed.die = func(n Name) { died = append(died, n) }
	armed.file = filepath.Join(t.TempDir(), "armed")
	defer func() { armed.file = "" }()
	Hit(SealCommitBefore)
	if err := os.WriteFile(armed.file, []byte(SealCommitBefore), 0o600); err != nil {
		t.Fatal(err)
	}
	Hit(SealCommitAfter)
	Hit(SealCommitBefore)
	Hit(SealCommitBefore)
	if len(died) != 1 || died[0] != SealCommitBefore {
		t.Fatalf("died at %v", died)
	}
}

func TestFreezesOfAFileOnce(t *testing.T) {
	var died, frozen []Name
	armed.die = func(n Name) { died = append(died, n) }
	armed.freeze = func(n Name) { frozen = append(frozen, n) }
	armed.file = filepath.Join(t.TempDir(), "armed")
	defer func() { armed.file = "" }()
	if err := os.WriteFile(armed.file, []byte(Freeze+SealCommitBefore), 0o600); err != nil {
		t.Fatal(err)
	}
	Hit(SealCommitAfter)
	Hit(SealCommitBefore)
	Hit(SealCommitBefore)
	if len(died) != 0 || len(frozen) != 1 || frozen[0] != SealCommitBefore {
		t.Fatalf("died at %v, frozen at %v", died, frozen)
	}
}

func TestRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, text := range []string{"seal.nothing", "seal.commit.before@0", "seal.commit.before@x", ","} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was taken", text)
				}
			}()
			parse(text)
		}()
	}
}
