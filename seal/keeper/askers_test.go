package keeper

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

type hands struct{ at time.Time }

func (h *hands) now() time.Time { return h.at }

func TestLimits(t *testing.T) {
	t.Parallel()
	clock := &hands{time.Unix(1000, 0)}
	a := newAskers(clock.now)
	admitted := func(peer, route string, times int) (n int) {
		for range times {
			ok, _ := a.admit(peer, route)
			if ok && route == routeFetch {
				ok, _ = a.give(peer, route)
			}
			if ok {
				n++
			}
		}
		return n
	}
	if n := admitted("p1", routeFetch, 50); n != 10 {
		t.Errorf("%d shares at once", n)
	}
	if n := admitted("p2", routeFetch, 3) + admitted("p1", routeProve, 50); n != 53 {
		t.Errorf("%d of 53: another peer's requests, or other operations, count", n)
	}
	clock.at = clock.at.Add(3 * time.Second)
	if n := admitted("p1", routeFetch, 50); n != 3 {
		t.Errorf("%d shares after three seconds", n)
	}
	clock.at = clock.at.Add(time.Hour)
	if n := admitted("p1", routeFetch, 50); n != 10 {
		t.Errorf("%d shares at once after an hour", n)
	}
	if n := admitted("p3", routePlace, 500); n != 100 {
		t.Errorf("%d placed at once", n)
	}
	clock.at = clock.at.Add(-time.Hour) // a clock that goes back gives nothing
	if n := admitted("p1", routeFetch, 50); n != 0 {
		t.Errorf("%d shares from the past", n)
	}
	warned := 0
	for range 200 {
		if _, first := a.admit("p4", routeHolds); first {
			warned++
		}
	}
	if warned != 1 {
		t.Errorf("%d of 100 refusals were worth a word", warned)
	}
	if n := admitted("p5", routeProve, 99); n != 99 {
		t.Errorf("%d proofs at once", n)
	}
}

// No sequence of requests gets more than the burst and the rate allow, and what is remembered stays within its bound,
// with whoever asked last in it.
func TestAskersModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		clock := &hands{time.Unix(1000, 0)}
		began := clock.at
		a := newAskers(clock.now)
		admitted, asked := 0, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			clock.at = clock.at.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond)
			asked++
			a.admit("p", routeFetch)
			if ok, _ := a.give("p", routeFetch); ok {
				admitted++
			}
			if rapid.Bool().Draw(t, "other") {
				a.admit(fmt.Sprint("q", rapid.IntRange(0, 20).Draw(t, "peer")), routeHolds)
			}
		}
		if most := 10 + clock.at.Sub(began).Seconds(); float64(admitted) > most+1e-6 {
			t.Fatalf("%d of %d admitted in %s", admitted, asked, clock.at.Sub(began))
		}
		for _, e := range a.list() {
			if e.Peer == "p" && (e.Count != uint64(asked) || e.Refused != uint64(asked-admitted) || e.Op != "fetch") {
				t.Fatalf("%+v after %d requests", e, asked)
			}
		}
		for i := range 3 * maxAskers {
			clock.at = clock.at.Add(time.Millisecond)
			a.admit(fmt.Sprint("r", i), routeHolds)
		}
		list := a.list()
		if len(list) != maxAskers || list[0].Peer != fmt.Sprint("r", 3*maxAskers-1) {
			t.Fatalf("%d are remembered, %s last", len(list), list[0].Peer)
		}
	})
}

// The attempts of a peer that cannot unseal itself, however long, are within the limit, also when five peers share one
// identity: see unsealing in package node, whose pauses these are.
func TestUnsealingIsWithinTheLimits(t *testing.T) {
	t.Parallel()
	clock := &hands{time.Unix(1000, 0)}
	a := newAskers(clock.now)
	for range 5 {
		a.give("/spike/nexus", routeFetch) // all at once, after a power failure
	}
	one := newAskers(clock.now)
	pause := 100 * time.Millisecond
	for i := range 100 {
		if ok, _ := one.give("/spike/nexus/nexus-1", routeFetch); !ok {
			t.Fatalf("attempt %d was refused", i+1)
		}
		pause = min(pause*2, 5*time.Second)
		clock.at = clock.at.Add(pause)
	}
	for i := range 100 {
		for range 5 {
			if ok, _ := a.give("/spike/nexus", routeFetch); !ok {
				t.Fatalf("round %d of five was refused", i+1)
			}
		}
		clock.at = clock.at.Add(5 * time.Second)
	}
}
