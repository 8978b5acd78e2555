package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// register is the model that histories of one path are checked against: a
// value and its version, written, compared-and-set and read.
type registerInput struct {
	path   string
	write  bool
	value  string
	expect int // -1: whatever is there
}

type registerOutput struct {
	value    string
	version  int
	conflict bool
	unknown  bool // the write may take effect now, later or never
}

type registerState struct {
	value   string
	version int
}

var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byPath := map[string][]porcupine.Operation{}
		for _, op := range history {
			path := op.Input.(registerInput).path
			byPath[path] = append(byPath[path], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byPath {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return registerState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(registerState), input.(registerInput), output.(registerOutput)
		switch {
		case !in.write:
			return out.value == s.value && out.version == s.version, s
		case out.conflict:
			return in.expect != s.version, s
		case in.expect >= 0 && in.expect != s.version:
			return out.unknown, s // an unknown one may have met a conflict
		case out.unknown:
			return true, registerState{in.value, s.version + 1}
		}
		return out.version == s.version+1, registerState{in.value, s.version + 1}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// Clients pinned to each voter and to a learner read, write and compare-and-set
// a few secrets while peers are killed, frozen and cut off and leadership is
// handed around; every answer fits one order of all operations.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	runs, length, least := 1, 15*time.Second, int64(150)
	if os.Getenv("SPIKE_TEST_LONG") != "" {
		runs, length, least = 20, 25*time.Second, 1000
	}
	for run := range runs {
		t.Run(strconv.Itoa(run), func(t *testing.T) { linearizable(t, length, least) })
	}
}

const (
	voters  = 3
	peers   = voters + 1 // the last one is a learner
	perPeer = 8          // clients
)

// history is what the clients saw.
type history struct {
	begin  time.Time
	length time.Duration       // that it has at least,
	least  int64               // and operations that each peer answers while faults go on
	asked  [peers]atomic.Int64 // operations that were begun through each peer
	good   [peers]atomic.Int64 // and those that it answered

	mu         sync.Mutex
	operations []porcupine.Operation
}

func linearizable(t *testing.T, length time.Duration, least int64) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := broken(t, harness.Options{Voters: voters, Learners: 1, Links: true})
	operator := c.client(harness.Superuser, 0, 1, 2, 3)
	h := &history{begin: time.Now(), length: length, least: least}
	var wg sync.WaitGroup
	var unique atomic.Int64
	for id := range peers * perPeer {
		peer := id % peers
		cl := c.client(harness.Superuser, peer)
		random := rand.New(rand.NewPCG(seed, uint64(id)))
		wg.Go(func() {
			for !h.over() {
				h.operation(cl, id, peer, random, &unique)
			}
		})
	}
	faults := c.attack(operator, rand.New(rand.NewPCG(seed, 1<<32)), h)
	wg.Wait()
	t.Logf("faults: %v", faults)
	for i := range h.good {
		n := h.good[i].Load()
		t.Logf("%s answered %d operations", harness.PeerName(i), n)
		if n < least {
			t.Errorf("%s answered %d operations; fewer than %d mean nothing", harness.PeerName(i), n, least)
		}
	}
	h.check(t, seed)
	c.eventually("all peers serve the same state", func() error { return c.Whole(ctx, operator) })
}

// operation makes one of the client id, which asks peer.
func (h *history) operation(cl *client.Client, id, peer int, random *rand.Rand, unique *atomic.Int64) {
	// Other registers each second: a write of unknown outcome makes the check of
	// its register cost more with each operation after it.
	path := fmt.Sprintf("register/%d/%d", time.Since(h.begin)/time.Second, random.IntN(6))
	in := registerInput{path: path, write: random.IntN(2) == 0, expect: -1}
	if in.write {
		in.value = strconv.FormatInt(unique.Add(1), 10)
		if random.IntN(3) == 0 {
			in.expect = random.IntN(60)
		}
	}
	h.asked[peer].Add(1)
	op := porcupine.Operation{ClientId: id, Input: in, Call: int64(time.Since(h.begin))}
	out, known := ask(cl, in)
	op.Return, op.Output = int64(time.Since(h.begin)), out
	if !known {
		return // certainly not done, or a read without an answer
	}
	if out.unknown {
		op.Return = 1 << 62 // it may take effect at any time from now on
	} else {
		h.good[peer].Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, op)
}

func (h *history) check(t *testing.T, seed uint64) {
	result, info := porcupine.CheckOperationsVerbose(register, h.operations, 2*time.Minute)
	switch result {
	case porcupine.Illegal:
		file := filepath.Join(os.TempDir(), fmt.Sprintf("spike-history-%d.html", seed))
		if err := porcupine.VisualizePath(register, info, file); err == nil {
			t.Logf("the history is drawn in %s", file)
		}
		t.Fatalf("the history of %d operations is not linearizable", len(h.operations))
	case porcupine.Unknown:
		t.Fatalf("the history of %d operations could not be checked in time", len(h.operations))
	}
}

// over ends a run: it was long enough, and each peer answered enough, or too little
// in four times that.
func (h *history) over() bool {
	took, enough := time.Since(h.begin), true
	for i := range h.good {
		enough = enough && h.good[i].Load() >= h.least
	}
	return took >= h.length && enough || took >= 4*h.length
}

// attack does harm until the run is over, one fault at a time, and returns how many of each.
// Whenever a fault is over, every peer must answer again before the next one.
func (c *brokenCluster) attack(operator *client.Client, random *rand.Rand, h *history) map[string]int {
	c.t.Helper()
	done := map[string]int{}
	answered := func(least int64, which ...int) {
		c.t.Helper()
		var before [peers]int64
		for _, i := range which {
			before[i] = h.good[i].Load()
		}
		c.eventually("the peers that are left answer", func() error {
			for _, i := range which {
				if n := h.good[i].Load() - before[i]; n < least && !h.over() {
					return fmt.Errorf("%s: %d operations", harness.PeerName(i), n)
				}
			}
			return nil
		})
	}
	for n := random.IntN(4); !h.over(); n++ {
		from := time.Since(h.begin)
		leader := c.leader(operator)
		others := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == leader })
		victim := leader
		if random.IntN(2) == 0 {
			victim = random.IntN(peers)
		}
		rest := slices.DeleteFunc([]int{0, 1, 2, 3}, func(i int) bool { return i == victim })
		var fault string
		switch n % 4 {
		case 0:
			fault = "leader and learner cut off from the other voters"
			c.Links.Partition([]int{leader, voters}, others)
			answered(20, others...)
			c.Links.Heal()
		case 1:
			fault = "kill"
			c.must(c.Peer(victim).Kill())
			answered(10, rest...)
			c.must(c.Peer(victim).Start())
		case 2:
			// Its clients give up and ask anew, so that it wakes up with requests of a
			// time in which another led.
			fault = "freeze"
			victim = leader
			c.must(c.Peer(victim).Freeze())
			answered(10, others...)
			asked := h.asked[victim].Load()
			c.eventually("the clients of the frozen peer ask again", func() error {
				if n := h.asked[victim].Load() - asked; n < perPeer && !h.over() {
					return fmt.Errorf("%d of them", n)
				}
				return nil
			})
			answered(10, others...)
			c.must(c.Peer(victim).Thaw())
		case 3:
			fault = "transfer"
			if err := operator.TransferLeadership(ctx, harness.PeerName(others[random.IntN(2)])); err != nil {
				c.t.Logf("transfer: %v", err)
			}
		}
		over := time.Since(h.begin)
		done[fault]++
		answered(10, 0, 1, 2, 3)
		c.t.Logf("%6.2fs %s of %s (leader %s), over at %.2fs, all answer at %.2fs", from.Seconds(), fault, harness.PeerName(victim), harness.PeerName(leader), over.Seconds(), time.Since(h.begin).Seconds())
	}
	return done
}

// ask makes one operation. known is false when it certainly had no effect and
// says nothing of the state.
func ask(cl *client.Client, in registerInput) (out registerOutput, known bool) {
	limit, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if !in.write {
		values, answer, err := cl.Get(limit, in.path, 0)
		if secret.CodeOf(err) == secret.CodeNotFound {
			return registerOutput{}, true
		}
		return registerOutput{value: values["v"], version: int(answer.Version)}, err == nil
	}
	var expect *secret.Version
	if in.expect >= 0 {
		v := secret.Version(in.expect)
		expect = &v
	}
	answer, err := cl.Put(limit, in.path, map[string]string{"v": in.value}, expect)
	switch secret.CodeOf(err) {
	case "":
		return registerOutput{version: int(answer.Version)}, true
	case secret.CodeConflict:
		return registerOutput{conflict: true}, true
	case secret.CodeUnknown:
		return registerOutput{unknown: true}, true
	}
	return registerOutput{}, false
}

// Eight workers compare-and-set one counter through all peers while the leader
// is killed: its end is the number of acknowledged steps.
func TestCounterUnderKills(t *testing.T) {
	t.Parallel()
	c := up(t)
	any := c.client(superuser)
	length := 10 * time.Second
	if os.Getenv("SPIKE_TEST_LONG") != "" {
		length = time.Minute
	}
	end := time.Now().Add(length)
	var acknowledged, unknown atomic.Int64
	if _, err := any.Put(ctx, "counter", map[string]string{"n": "0"}, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		cl := c.client(superuser, w%3, (w+1)%3, (w+2)%3)
		wg.Go(func() {
			for time.Now().Before(end) {
				values, answer, err := cl.Get(ctx, "counter", 0)
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(values["n"])
				switch _, err := cl.Put(ctx, "counter", map[string]string{"n": strconv.Itoa(n + 1)}, &answer.Version); secret.CodeOf(err) {
				case "":
					acknowledged.Add(1)
				case secret.CodeConflict:
				case secret.CodeUnknown:
					unknown.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	for time.Now().Before(end) {
		leader := c.leader(any)
		before := acknowledged.Load()
		c.kill(peerName(leader))
		c.eventually("the counter goes on", func() error {
			if acknowledged.Load() > before || time.Now().After(end) {
				return nil
			}
			return fmt.Errorf("still at %d", before)
		})
		c.start(peerName(leader))
		c.whole(any)
	}
	wg.Wait()
	values, _, err := any.Get(ctx, "counter", 0)
	n, _ := strconv.Atoi(values["n"])
	if err != nil || int64(n) < acknowledged.Load() || int64(n) > acknowledged.Load()+unknown.Load() {
		t.Fatalf("the counter is %d after %d acknowledged steps and %d unknown ones: %v", n, acknowledged.Load(), unknown.Load(), err)
	}
	t.Logf("%d steps, %d unknown", acknowledged.Load(), unknown.Load())
}
