package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal"
)

// errCrash stands for the end of the process at that point: nothing of it runs on.
var errCrash = errors.New("crash")

// Whatever breaks an initialisation, and wherever, running it again on a fresh process completes it, and any
// process can then unseal.
func TestInitialiseCrashesAnywhere(t *testing.T) {
	t.Parallel()
	lose := func() error { return errCrash }
	steps := map[string]func(*ledger, keepers){
		"before begin":                 func(l *ledger, _ keepers) { l.beforeBegin = lose },
		"begun, answer lost":           func(l *ledger, _ keepers) { l.afterBegin = lose },
		"no Keeper takes its share":    func(_ *ledger, k keepers) { each(k, func(k *memKeeper) { k.fault(faults{placeErr: errCrash}) }) },
		"one Keeper takes no share":    func(_ *ledger, k keepers) { k[2].fault(faults{placeErr: errCrash}) },
		"share placed, answer lost":    func(_ *ledger, k keepers) { k[1].fault(faults{fetchErr: errCrash}) },
		"share comes back altered":     func(_ *ledger, k keepers) { k[1].fault(faults{corrupt: true}) },
		"a Keeper restarts at once":    func(_ *ledger, k keepers) { k[0].fault(faults{forgetful: true}) },
		"before commit":                func(l *ledger, _ keepers) { l.beforeCommit = lose },
		"committed, answer lost":       func(l *ledger, _ keepers) { l.afterCommit = lose },
		"committed, nobody is settled": func(_ *ledger, k keepers) { each(k, func(k *memKeeper) { k.fault(faults{settleErr: errCrash}) }) },
	}
	for name, breakIt := range steps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, ks := newLedger(), newKeepers(3)
			breakIt(l, ks)
			first := seal.New(seal.Config{Logger: quiet})
			err := first.Initialise(t.Context(), l, seal.Split{Keepers: ks.all(), Shares: 3, Threshold: 2})
			if (err == nil) == first.Sealed() {
				t.Fatalf("error %v, sealed %v", err, first.Sealed())
			}
			if err != nil && l.now().Committed != nil {
				t.Fatalf("committed, and yet: %v", err)
			}
			first.Lock() // the process dies

			l.beforeBegin, l.afterBegin, l.beforeCommit, l.afterCommit = nil, nil, nil, nil
			each(ks, func(k *memKeeper) { k.fault(faults{}) })
			second := seal.New(seal.Config{Logger: quiet})
			defer second.Lock()
			switch err := second.Initialise(t.Context(), l, seal.Split{Keepers: ks.all(), Shares: 3, Threshold: 2}); {
			case errors.Is(err, seal.ErrAlreadyInitialised):
			case err != nil:
				t.Fatal(err)
			}
			st := l.now()
			if st.Pending != nil || st.Committed == nil {
				t.Fatalf("state %+v", st)
			}
			each(ks, func(k *memKeeper) {
				if len(k.settled) == 0 || k.settled[len(k.settled)-1] != st.Committed.ID {
					t.Errorf("%s is not settled", k.name)
				}
			})
			third := seal.New(seal.Config{Logger: quiet})
			defer third.Lock()
			if reports, err := third.Unseal(t.Context(), st, ks.all()); err != nil {
				t.Fatal(err, reports)
			}
		})
	}
}

func each(ks keepers, f func(*memKeeper)) {
	for _, k := range ks {
		f(k)
	}
}

// A commit of unknown outcome whose state cannot be read either is reported as a failure, and leaves the process
// sealed; what the log holds then decides.
func TestInitialiseUnknownCommit(t *testing.T) {
	t.Parallel()
	l, ks := newLedger(), newKeepers(3)
	ctx, cancel := context.WithCancel(t.Context())
	l.afterCommit = func() error { cancel(); return context.Canceled }
	s := seal.New(seal.Config{Logger: quiet})
	if err := s.Initialise(ctx, cancelled{l}, seal.Split{Keepers: ks.all(), Shares: 3, Threshold: 2}); err == nil || !s.Sealed() {
		t.Fatalf("error %v, sealed %v", err, s.Sealed())
	}
	if _, err := s.Unseal(t.Context(), l.now(), ks.all()); err != nil {
		t.Fatal(err)
	}
	s.Lock()
}

// cancelled is a ledger that fails once the context has ended.
type cancelled struct{ *ledger }

func (c cancelled) State(ctx context.Context) (seal.State, error) {
	if ctx.Err() != nil {
		return seal.State{}, ctx.Err()
	}
	return c.ledger.State(ctx)
}

func TestTwoInitialiseAtOnce(t *testing.T) {
	t.Parallel()
	for range 20 {
		l, ks := newLedger(), newKeepers(3)
		var seals [2]*seal.Seal
		var errs [2]error
		var wg sync.WaitGroup
		for i := range seals {
			seals[i] = seal.New(seal.Config{Logger: quiet})
			wg.Go(func() {
				errs[i] = seals[i].Initialise(context.Background(), l, seal.Split{Keepers: ks.all(), Shares: 3, Threshold: 2})
			})
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, seal.ErrSuperseded) && !errors.Is(err, seal.ErrAlreadyInitialised):
				t.Fatal(err)
			}
			if (err == nil) == seals[i].Sealed() {
				t.Fatalf("error %v, sealed %v", err, seals[i].Sealed())
			}
		}
		if won != 1 {
			t.Fatalf("%d won: %v", won, errs)
		}
		s := seal.New(seal.Config{Logger: quiet})
		if reports, err := s.Unseal(t.Context(), l.now(), ks.all()); err != nil {
			t.Fatal(err, reports)
		}
		for _, s := range append(seals[:], s) {
			s.Lock()
		}
	}
}

func TestInitialiseRefuses(t *testing.T) {
	t.Parallel()
	ks := newKeepers(3)
	twice := []seal.Keeper{ks[0], ks[1], ks[1]}
	s := seal.New(seal.Config{Logger: quiet})
	for name, c := range map[string]struct {
		keepers []seal.Keeper
		n, t    int
	}{
		"no shares":            {nil, 0, 0},
		"threshold 0":          {ks.all(), 3, 0},
		"threshold above n":    {ks.all(), 3, 4},
		"too few Keepers":      {ks.all()[:2], 3, 2},
		"too many Keepers":     {ks.all(), 2, 2},
		"256 shares":           {newKeepers(256).all(), 256, 2},
		"a Keeper twice":       {twice, 3, 2},
		"threshold 1, unasked": {ks.all(), 3, 1},
		"a Keeper unnamed":     {[]seal.Keeper{&memKeeper{}}, 1, 1},
	} {
		l := newLedger()
		if err := s.Initialise(t.Context(), l, seal.Split{Keepers: c.keepers, Shares: c.n, Threshold: c.t}); !errors.Is(err, seal.ErrShareSet) || l.now().Pending != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := newLedger()
	l.state.Sealed = true
	if err := s.Initialise(t.Context(), l, seal.Split{Keepers: ks.all(), Shares: 3, Threshold: 2}); !errors.Is(err, seal.ErrOperatorSealed) {
		t.Errorf("sealed by an operator: %v", err)
	}
}

func TestUnsealAmongBadKeepers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 7, 2)
	w.keepers[0].fault(faults{corrupt: true})
	w.keepers[1].restart()
	w.keepers[2].fault(faults{fetchErr: seal.ErrOtherSet})
	w.keepers[3].fault(faults{fetchErr: fmt.Errorf("wrapped: %w", seal.ErrForeignSet)})
	w.keepers[4].fault(faults{silent: true})
	stranger := &memKeeper{name: "keeper-99", shares: map[seal.Slot][]byte{}}
	s := seal.New(seal.Config{Logger: quiet, KeeperTimeout: 500 * time.Millisecond})
	defer s.Lock()

	// One good share: everyone is heard, and nobody's fault is hidden.
	w.keepers[6].fault(faults{fetchErr: seal.ErrStale})
	reports, err := s.Unseal(t.Context(), w.now(), append(w.all(), stranger))
	var few *seal.NotEnoughError
	if !errors.As(err, &few) || few.Good != 1 || few.Needed != 2 {
		t.Fatal(err)
	}
	want := map[string]seal.Health{"keeper-1": seal.Wrong, "keeper-2": seal.Empty, "keeper-3": seal.Stale, "keeper-4": seal.Foreign,
		"keeper-5": seal.Unreachable, "keeper-6": seal.Good, "keeper-7": seal.Stale, "keeper-99": seal.Foreign}
	if got := health(reports); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
	for name, h := range want {
		if h != seal.Good && !strings.Contains(err.Error(), name+" is "+string(h)) {
			t.Errorf("the error does not say that %s is %s: %v", name, h, err)
		}
	}
	// Two: unsealed, without waiting for the silent one.
	w.keepers[6].fault(faults{fetchErr: nil})
	begin := time.Now()
	if reports, err = s.Unseal(t.Context(), w.now(), w.all()); err != nil {
		t.Fatal(err, reports)
	}
	if took := time.Since(begin); took > 400*time.Millisecond {
		t.Errorf("waited %s for a Keeper that was not needed", took)
	}
}

// A Keeper that does not even heed its context cannot hold an unsealing up.
func TestUnsealDespiteAKeeperThatHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2, 2)
	hang := &gatedKeeper{Keeper: w.keepers[0], asked: make(chan struct{}), go_: make(chan struct{})}
	defer close(hang.go_)
	s := seal.New(seal.Config{Logger: quiet, KeeperTimeout: 100 * time.Millisecond})
	reports, err := s.Unseal(t.Context(), w.now(), []seal.Keeper{hang, w.keepers[1]})
	if err == nil || health(reports)["keeper-1"] != seal.Unreachable {
		t.Fatal(err, reports)
	}
}

func TestUnsealRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	foreign := newWorld(t, 3, 2)
	st := w.now()
	with := func(change func(*seal.State)) seal.State {
		out := st
		set := *st.Committed
		set.Fingerprints, set.Keepers = slices.Clone(set.Fingerprints), slices.Clone(set.Keepers)
		out.Committed, out.Keyring = &set, bytes.Clone(st.Keyring)
		change(&out)
		return out
	}
	for name, c := range map[string]struct {
		st   seal.State
		want error
	}{
		"not initialised":       {seal.State{}, seal.ErrNotInitialised},
		"operator sealed":       {with(func(s *seal.State) { s.Sealed = true }), seal.ErrOperatorSealed},
		"impossible set":        {with(func(s *seal.State) { s.Committed.Threshold = 9 }), seal.ErrShareSet},
		"altered keyring":       {with(func(s *seal.State) { s.Keyring[50] ^= 1 }), seal.ErrKeyring},
		"foreign keyring":       {with(func(s *seal.State) { s.Keyring = foreign.now().Keyring }), seal.ErrKeyring},
		"no keyring":            {with(func(s *seal.State) { s.Keyring = nil }), seal.ErrKeyring},
		"lowered threshold":     {with(func(s *seal.State) { s.Committed.Threshold = 1 }), seal.ErrRoot},
		"one false fingerprint": {with(func(s *seal.State) { s.Committed.Fingerprints[2] = [32]byte{} }), seal.ErrRoot},
	} {
		s := seal.New(seal.Config{Logger: quiet})
		if _, err := s.Unseal(t.Context(), c.st, w.all()); !errors.Is(err, c.want) || !s.Sealed() {
			t.Errorf("%s: %v, sealed %v", name, err, s.Sealed())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	each(w.keepers, func(k *memKeeper) { k.fault(faults{silent: true}) })
	s := seal.New(seal.Config{Logger: quiet})
	if _, err := s.Unseal(ctx, st, w.all()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestInspectAndRefill(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 6, 3)
	st := w.now()
	before, err := w.first.Recovery(st)
	if err != nil {
		t.Fatal(err)
	}
	w.keepers[0].restart()
	w.keepers[1].restart()
	if err := w.keepers[1].Place(t.Context(), seal.Slot{Cluster: st.Cluster, Set: [16]byte{9}, Index: 2}, make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	wrong := seal.Slot{Cluster: st.Cluster, Set: st.Committed.ID, Index: 3}
	if err := w.keepers[2].Place(t.Context(), wrong, bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	w.keepers[3].fault(faults{fetchErr: seal.ErrForeignSet})
	w.keepers[4].fault(faults{fetchErr: errors.New("no route to host")})
	given := w.all()[:5] // the sixth has no address here

	want := map[string]seal.Health{"keeper-1": seal.Empty, "keeper-2": seal.Stale, "keeper-3": seal.Wrong,
		"keeper-4": seal.Foreign, "keeper-5": seal.Unreachable, "keeper-6": seal.Unreachable}
	for range 2 {
		reports, err := w.first.Inspect(t.Context(), st, given)
		if err != nil || fmt.Sprint(health(reports)) != fmt.Sprint(want) {
			t.Fatalf("%v, %v", reports, err)
		}
	}
	reports, err := w.first.Refill(t.Context(), st, given)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range reports {
		if r.Index != i+1 || r.Refilled != (i < 3) || (i < 3) != (r.Health == seal.Good) {
			t.Errorf("%+v", r)
		}
	}
	for i := range 3 {
		got, err := w.keepers[i].Fetch(t.Context(), seal.Slot{Cluster: st.Cluster, Set: st.Committed.ID, Index: i + 1})
		if err != nil || !bytes.Equal(got, before[i].Bytes[:]) {
			t.Errorf("keeper %d holds another share than before: %v", i+1, err)
		}
	}
	other := newWorld(t, 3, 2).now()
	if _, err := w.first.Refill(t.Context(), other, given); !errors.Is(err, seal.ErrStaleState) {
		t.Errorf("another set: %v", err)
	}
	if _, err := w.first.Recovery(other); !errors.Is(err, seal.ErrStaleState) {
		t.Errorf("another set: %v", err)
	}
	if _, err := w.first.Recovery(seal.State{}); !errors.Is(err, seal.ErrNotInitialised) {
		t.Error(err)
	}
	if _, err := w.first.Refill(t.Context(), seal.State{}, given); !errors.Is(err, seal.ErrNotInitialised) {
		t.Error(err)
	}
	if _, err := w.first.Inspect(t.Context(), seal.State{}, given); !errors.Is(err, seal.ErrNotInitialised) {
		t.Error(err)
	}
}

// Any threshold of shares in any order unseals, however many wrong, double and foreign ones come between.
func TestCollector(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 6, 4)
	st := w.now()
	good, err := w.first.Recovery(st)
	if err != nil {
		t.Fatal(err)
	}
	pendingWorld := newWorld(t, 6, 4)
	pending, err := pendingWorld.first.Recovery(pendingWorld.now())
	if err != nil {
		t.Fatal(err)
	}
	st.Pending = pendingWorld.now().Committed
	rapid.Check(t, func(t *rapid.T) {
		c := seal.NewCollector()
		defer c.Close()
		s := seal.New(seal.Config{Logger: quiet})
		defer s.Lock()
		have := make(map[int]bool)
		for len(have) < 4 {
			if err := s.UnsealWith(st, c); err == nil || !s.Sealed() {
				t.Fatal("unsealed with too few shares")
			}
			i := rapid.IntRange(0, 5).Draw(t, "share")
			share, index := good[i].Bytes, good[i].Index
			want := error(nil)
			switch rapid.IntRange(0, 5).Draw(t, "fault") {
			case 0:
				share[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
				want = seal.ErrWrongShare
			case 1:
				index = index%6 + 1
				want = seal.ErrWrongShare
			case 2:
				index = rapid.SampledFrom([]int{0, -1, 7, 1 << 40}).Draw(t, "index")
				want = seal.ErrShareIndex
			case 3:
				share = pending[i].Bytes
				want = seal.ErrForeignShare
			default:
				if have[i] {
					want = seal.ErrDuplicateShare
				}
				have[i] = true
			}
			p, err := c.Add(st, index, share[:])
			if !errors.Is(err, want) || (want == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, want)
			}
			if p.Collected != len(have) || p.Remaining != 4-len(have) || p.Ready != (len(have) == 4) {
				t.Fatalf("%d collected: %+v", len(have), p)
			}
		}
		if err := s.UnsealWith(st, c); err != nil || s.Sealed() {
			t.Fatal(err)
		}
		if err := s.UnsealWith(st, c); err == nil {
			t.Fatal("the collector kept its shares")
		}
	})
}

func TestCollectorBeginsAnewWithAnotherSet(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t, 3, 2), newWorld(t, 3, 2)
	mine, _ := w.first.Recovery(w.now())
	theirs, _ := other.first.Recovery(other.now())
	c := seal.NewCollector()
	defer c.Close()
	if _, err := c.Add(seal.State{}, 1, mine[0].Bytes[:]); !errors.Is(err, seal.ErrNotInitialised) {
		t.Error(err)
	}
	if _, err := c.Add(w.now(), 1, mine[0].Bytes[:]); err != nil {
		t.Fatal(err)
	}
	s := seal.New(seal.Config{Logger: quiet})
	defer s.Lock()
	if err := s.UnsealWith(other.now(), c); !errors.Is(err, seal.ErrForeignShare) {
		t.Error(err)
	}
	if p, err := c.Add(other.now(), 2, theirs[1].Bytes[:]); err != nil || p.Collected != 1 {
		t.Fatal(p, err)
	}
	if p, err := c.Add(other.now(), 3, theirs[2].Bytes[:]); err != nil || !p.Ready {
		t.Fatal(p, err)
	}
	sealed := other.now()
	sealed.Sealed = true
	if err := s.UnsealWith(sealed, c); !errors.Is(err, seal.ErrOperatorSealed) {
		t.Error(err)
	}
	if err := s.UnsealWith(other.now(), c); err != nil {
		t.Fatal(err)
	}
}

func TestSharesStayOutOfLogs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2)
	shares, err := w.first.Recovery(w.now())
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, shares[0]); strings.Contains(got, fmt.Sprint(shares[0].Bytes[0])+" "+fmt.Sprint(shares[0].Bytes[1])) || !strings.Contains(got, "withheld") {
			t.Errorf("%s prints %s", format, got)
		}
	}
	shares[0].Wipe()
	if shares[0].Bytes != [32]byte{} {
		t.Error("not wiped")
	}
}
