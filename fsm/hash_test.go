package fsm

import (
	"testing"

	"pgregory.net/rapid"
)

// TestSumsForgetOrder checks what state hashes rest on: adding and taking away
// records in any order gives the sum of those that remain.
func TestSumsForgetOrder(t *testing.T) {
	t.Parallel()
	number := rapid.Custom(func(t *rapid.T) sum {
		// Limbs at the edges make carries run through.
		limb := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, 1<<64 - 1}))
		return sum{limb.Draw(t, "0"), limb.Draw(t, "1"), limb.Draw(t, "2"), limb.Draw(t, "3")}
	})
	rapid.Check(t, func(t *rapid.T) {
		kept := rapid.SliceOfN(number, 0, 6).Draw(t, "kept")
		gone := rapid.SliceOfN(number, 0, 6).Draw(t, "gone")
		var straight, detour sum
		for _, k := range kept {
			straight = straight.plus(k)
		}
		for _, g := range gone {
			detour = detour.plus(g)
		}
		for _, i := range rapid.Permutation(indices(len(kept))).Draw(t, "order") {
			detour = detour.plus(kept[i])
		}
		for _, i := range rapid.Permutation(indices(len(gone))).Draw(t, "removal") {
			detour = detour.minus(gone[i])
		}
		if straight != detour {
			t.Fatalf("%x, %x", straight.bytes(), detour.bytes())
		}
		if sumOf(straight.bytes()) != straight {
			t.Fatal("bytes do not give the sum back")
		}
	})
}

func indices(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}
