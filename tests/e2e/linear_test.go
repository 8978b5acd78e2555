package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
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

// Clients pinned to each peer read, write and compare-and-set a few secrets
// while peers are killed; every answer fits one order of all operations.
func TestLinearizableUnderKills(t *testing.T) {
	t.Parallel()
	runs, length := 1, 12*time.Second
	if os.Getenv("SPIKE_TEST_LONG") != "" {
		runs, length = 20, 30*time.Second
	}
	for run := range runs {
		t.Run(strconv.Itoa(run), func(t *testing.T) { linearizable(t, length) })
	}
}

func linearizable(t *testing.T, length time.Duration) {
	c := up(t)
	any := c.client(superuser)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var (
		mu      sync.Mutex
		history []porcupine.Operation
		good    [3]atomic.Int64
		unique  atomic.Int64
		wg      sync.WaitGroup
	)
	begin := time.Now()
	end := begin.Add(length)
	const perPeer = 4
	for id := range 3 * perPeer {
		peer := id % 3
		cl := c.client(superuser, peer)
		random := rand.New(rand.NewPCG(seed, uint64(id)))
		wg.Go(func() {
			for time.Now().Before(end) {
				// Other registers each second: a write of unknown outcome makes the
				// check of its register cost more with each operation after it.
				path := fmt.Sprintf("register/%d/%d", time.Since(begin)/time.Second, random.IntN(3))
				in := registerInput{path: path, write: random.IntN(2) == 0, expect: -1}
				if in.write {
					in.value = strconv.FormatInt(unique.Add(1), 10)
					if random.IntN(3) == 0 {
						in.expect = random.IntN(60)
					}
				}
				op := porcupine.Operation{ClientId: id, Input: in, Call: int64(time.Since(begin))}
				out, known := ask(cl, in)
				op.Return, op.Output = int64(time.Since(begin)), out
				if !known {
					continue // certainly not done, or a read without an answer
				}
				if out.unknown {
					op.Return = 1 << 62 // it may take effect at any time from now on
				} else {
					good[peer].Add(1)
				}
				mu.Lock()
				history = append(history, op)
				mu.Unlock()
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, 1<<32))
	for time.Now().Before(end) {
		before := good[0].Load() + good[1].Load() + good[2].Load()
		victim := random.IntN(3)
		if random.IntN(2) == 0 {
			victim = c.leader(any)
		}
		c.kill(peerName(victim))
		c.eventually("others go on", func() error {
			if good[0].Load()+good[1].Load()+good[2].Load() > before+30 || time.Now().After(end) {
				return nil
			}
			return fmt.Errorf("%d operations", good[0].Load()+good[1].Load()+good[2].Load()-before)
		})
		c.start(peerName(victim))
		before = good[victim].Load()
		c.eventually("the victim goes on", func() error {
			if good[victim].Load() > before+10 || time.Now().After(end) {
				return nil
			}
			return fmt.Errorf("%d operations", good[victim].Load()-before)
		})
	}
	wg.Wait()
	for i := range good {
		t.Logf("%s answered %d operations", peerName(i), good[i].Load())
		if good[i].Load() < 50 {
			t.Errorf("%s answered too little for the run to mean anything", peerName(i))
		}
	}
	result, info := porcupine.CheckOperationsVerbose(register, history, 2*time.Minute)
	switch result {
	case porcupine.Illegal:
		file := filepath.Join(os.TempDir(), fmt.Sprintf("spike-history-%d.html", seed))
		if err := porcupine.VisualizePath(register, info, file); err == nil {
			t.Logf("the history is drawn in %s", file)
		}
		t.Fatalf("the history of %d operations is not linearizable", len(history))
	case porcupine.Unknown:
		t.Fatalf("the history of %d operations could not be checked in time", len(history))
	}
}

// ask makes one operation. known is false when it certainly had no effect and
// says nothing of the state.
func ask(cl *client.Client, in registerInput) (out registerOutput, known bool) {
	limit, cancel := context.WithTimeout(ctx, 2*time.Second)
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
