//go:build failpoints

package failpoint

import "testing"

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
