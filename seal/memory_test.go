//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package seal_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/internal/memscan"
	"github.com/spike-ha/spike-ha/seal"
)

// These tests search the memory of a process that had keys. It is this program again, told by its environment what to
// be; the Keepers are in the test's process, where their shares may lie around.

const childVariable = "SPIKE_SEAL_MEMORY_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childVariable); how != "" {
		if err := child(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// told is what the child says about itself, without a secret.
type told struct {
	States    []seal.State // before and after a rekey
	Processes [][16]byte
	Streams   [][]byte // some that it sealed
}

// After Lock, and a few passes of the collector which Lock asks for, the memory of a process holds none of its keys.
func TestNoKeyStaysInMemoryAfterLock(t *testing.T) {
	t.Parallel()
	c := startChild(t, "careful")
	state, needles := c.needles(t)
	before := names(scan(t, c, needles))
	for _, want := range []string{"root key, byte 0 on", "after the rekey: root key, byte 0 on", "data epoch 0, byte 0 on", "cipher epoch 1, byte 16 on", "path epoch 0 MAC key, byte 0 on",
		fmt.Sprintf("data epoch 0 record key of process %d, byte 0 on", len(state.Processes)-1)} {
		if !before[want] {
			t.Fatalf("before Lock the search finds no %s: it would find none after it either", want)
		}
	}
	c.say(t, "lock")
	c.hear(t, nil)
	deadline := time.Now().Add(time.Minute)
	for {
		hits := scan(t, c, needles)
		if len(hits) == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, h := range hits {
				t.Errorf("after Lock: %s", h)
			}
			return
		}
	}
}

// The search can fail: somebody who keeps the keys is found out.
func TestKeysThatAreKeptAreFound(t *testing.T) {
	t.Parallel()
	c := startChild(t, "leaking")
	_, needles := c.needles(t)
	c.say(t, "lock")
	c.hear(t, nil)
	if found := names(scan(t, c, needles)); !found["after the rekey: root key, byte 0 on"] || !found["data epoch 0, byte 0 on"] || !found["path epoch 0 MAC key, byte 0 on"] {
		t.Errorf("found only %v", found)
	}
}

func names(hits []memscan.Hit) map[string]bool {
	out := make(map[string]bool)
	for _, h := range hits {
		out[h.Needle] = true
	}
	return out
}

func scan(t *testing.T, c *childProcess, n *memscan.Needles) []memscan.Hit {
	t.Helper()
	hits, searched, err := memscan.Find(c.cmd.Process.Pid, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d hits in %d MiB", len(hits), searched>>20)
	return hits
}

// childProcess is the child as the test sees it.
type childProcess struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader

	mu     sync.Mutex                  // guards shares
	shares map[[16]byte]map[int][]byte // by set
}

// rootNames begin the names of keys under each root key.
var rootNames = []string{"", "after the rekey: "}

func startChild(t *testing.T, how string) *childProcess {
	t.Helper()
	c := &childProcess{cmd: exec.Command(os.Args[0]), shares: make(map[[16]byte]map[int][]byte)}
	c.cmd.Env, c.cmd.Stderr = append(os.Environ(), childVariable+"="+how, "GORACE=atexit_sleep_ms=0"), os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	theirs, ours := pipe(t)
	oursBack, theirsBack := pipe(t)
	c.cmd.ExtraFiles = []*os.File{theirs, theirsBack}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	theirsBack.Close()
	t.Cleanup(func() { c.cmd.Process.Kill(); c.cmd.Wait(); ours.Close(); oursBack.Close() })
	go c.keep(oursBack, ours)
	return c
}

// pipe gives its reading and its writing end.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// keep is all Keepers: they take shares and give them back.
func (c *childProcess) keep(from io.Reader, to io.Writer) {
	for {
		var head [2 + 16]byte
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return
		}
		c.mu.Lock()
		index, set := int(head[1]), [16]byte(head[2:])
		if c.shares[set] == nil {
			c.shares[set] = make(map[int][]byte)
		}
		switch head[0] {
		case 'p':
			share := make([]byte, 32)
			io.ReadFull(from, share)
			c.shares[set][index] = share
		case 'f':
			to.Write(c.shares[set][index])
		case 'v':
			var nonce [32]byte
			io.ReadFull(from, nonce[:])
			proof := seal.Proof(c.shares[set][index], seal.Slot{Cluster: newLedger().state.Cluster, Set: set, Index: index}, pipedKeeper{index}.Name(), nonce)
			to.Write(proof[:])
		}
		c.mu.Unlock()
	}
}

func (c *childProcess) say(t *testing.T, what string) {
	t.Helper()
	if _, err := fmt.Fprintln(c.in, what); err != nil {
		t.Fatal(err)
	}
}

func (c *childProcess) hear(t *testing.T, v any) {
	t.Helper()
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if v != nil {
		if err := json.Unmarshal(line, v); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *childProcess) needles(t *testing.T) (told, *memscan.Needles) {
	t.Helper()
	var s told
	c.hear(t, &s)
	n := &memscan.Needles{}
	count := 0
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, st := range s.States {
		seal.Needles(t, st, c.shares[st.Committed.ID], s.Processes, s.Streams, func(name string, key []byte) { n.Add(rootNames[i]+name, key); count++ })
	}
	t.Logf("%d keys", count)
	return s, n
}

// What follows runs in the child, and has to be as careful with shares as the program.

// pipedKeeper is one of the test's Keepers, seen from the child.
type pipedKeeper struct{ index int }

var toKeepers, fromKeepers = os.NewFile(4, "to Keepers"), os.NewFile(3, "from Keepers")

// one at a time
var turn = make(chan struct{}, 1)

func (k pipedKeeper) Name() string { return fmt.Sprintf("keeper-%d", k.index) }

func (k pipedKeeper) Place(_ context.Context, s seal.Slot, share []byte) error {
	turn <- struct{}{}
	defer func() { <-turn }()
	k.ask('p', s)
	_, err := toKeepers.Write(share)
	return err
}

func (k pipedKeeper) Fetch(_ context.Context, s seal.Slot) ([]byte, error) {
	turn <- struct{}{}
	defer func() { <-turn }()
	k.ask('f', s)
	share := make([]byte, 32)
	_, err := io.ReadFull(fromKeepers, share)
	return share, err
}

func (pipedKeeper) Settle(context.Context, seal.ClusterRef, [16]byte, uint64) error { return nil }

func (k pipedKeeper) Prove(_ context.Context, s seal.Slot, nonce [32]byte) (proof [32]byte, err error) {
	turn <- struct{}{}
	defer func() { <-turn }()
	k.ask('v', s)
	toKeepers.Write(nonce[:])
	_, err = io.ReadFull(fromKeepers, proof[:])
	return proof, err
}

func (pipedKeeper) ask(op byte, s seal.Slot) {
	toKeepers.Write(append([]byte{op, byte(s.Index)}, s.Set[:]...))
}

func (pipedKeeper) Holds(context.Context) ([]seal.Slot, error) { return nil, nil }

// forgetfulKeeper has lost its share at first.
type forgetfulKeeper struct {
	pipedKeeper
	has bool
}

func (k *forgetfulKeeper) Place(ctx context.Context, s seal.Slot, share []byte) error {
	k.has = true
	return k.pipedKeeper.Place(ctx, s, share)
}

func (k *forgetfulKeeper) Prove(ctx context.Context, s seal.Slot, nonce [32]byte) ([32]byte, error) {
	if !k.has {
		return [32]byte{}, seal.ErrNoShare
	}
	return k.pipedKeeper.Prove(ctx, s, nonce)
}

func (k *forgetfulKeeper) Fetch(ctx context.Context, s seal.Slot) ([]byte, error) {
	if !k.has {
		return nil, seal.ErrNoShare
	}
	return k.pipedKeeper.Fetch(ctx, s)
}

// child gets keys in every way there is, uses each in every way, and locks when it is told to.
func child(how string) error {
	s := seal.New(seal.Config{Logger: quiet})
	l := newLedger()
	var ks []seal.Keeper
	for i := range 5 {
		ks = append(ks, pipedKeeper{i + 1})
	}
	out := told{}
	ctx := context.Background()
	steps := []func() error{
		func() error { return s.Initialise(ctx, l, seal.Split{Keepers: ks, Shares: 5, Threshold: 3}) },
		func() error { return use(s, &out) },
		func() error { s.Lock(); return nil },
		func() error { _, err := s.Unseal(ctx, l.now(), ks); return err },
		func() error { return use(s, &out) },
		func() error { return rotate(s, l) },
		func() error { return use(s, &out) },
		func() error {
			_, err := s.Refill(ctx, l.now(), []seal.Keeper{ks[0], &forgetfulKeeper{pipedKeeper: pipedKeeper{2}}, ks[2], ks[3], ks[4]})
			return err
		},
		func() error { _, err := s.Inspect(ctx, l.now(), ks); return err },
		func() error { return restore(s, l) },
		func() error { return use(s, &out) },
		func() error { return rotate(s, l) },
		func() error {
			ids, err := s.RetiredEpochs(seal.Data)
			if err != nil {
				return err
			}
			return s.Archive(ctx, l, seal.Data, ids[:1])
		},
		func() error { return s.Follow(l.now()) },
		func() error { _, err := s.Epochs(l.now()); return err },
		func() error { return use(s, &out) },
		func() error { out.States = append(out.States, l.now()); return nil },
		func() error {
			return s.Rekey(ctx, l, seal.Rekeying{ID: [16]byte{1}, Split: seal.Split{Keepers: ks, Shares: 5, Threshold: 2}, Incarnation: 1})
		},
		func() error { _, err := s.Inspect(ctx, l.now(), ks); return err },
		func() error { return use(s, &out) },
		func() error { out.States = append(out.States, l.now()); return nil },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d of the child: %w", i, err)
		}
	}
	if how == "leaking" {
		s.Leak()
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return err
	}
	fmt.Scanln(new(string))
	s.Lock()
	if how == "leaking" {
		for range 4 {
			runtime.GC()
		}
	}
	fmt.Println("{}")
	fmt.Scanln(new(string)) // until the test ends
	runtime.KeepAlive(s)
	return nil
}

// restore unseals with exported shares.
func restore(s *seal.Seal, l *ledger) error {
	shares, err := s.Recovery(l.now())
	if err != nil {
		return err
	}
	c := seal.NewCollector()
	for i := range shares[:3] {
		if _, err := c.Add(l.now(), shares[i].Index, shares[i].Bytes[:]); err != nil {
			return err
		}
	}
	for i := range shares {
		shares[i].Wipe()
	}
	s.Lock()
	return s.UnsealWith(l.now(), c)
}

// use encrypts, decrypts and computes MACs, on many threads.
func use(s *seal.Seal, out *told) error {
	const workers, times = 4, 300
	failed := make(chan error, workers)
	for range workers {
		go func() {
			for i := range times {
				if err := useOnce(s, i); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range workers {
		if err := <-failed; err != nil {
			return err
		}
	}
	record, err := s.Encrypt(seal.Data, seal.AAD{}, nil)
	if process := seal.Process(record); err == nil && !slices.Contains(out.Processes, process) {
		out.Processes = append(out.Processes, process)
	}
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := s.EncryptStream(&sealed)
	if err == nil {
		_, err = w.Write(make([]byte, 10*seal.StreamChunk))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return err
	}
	out.Streams = append(out.Streams, sealed.Bytes()[:100])
	r, err := s.DecryptStream(bytes.NewReader(sealed.Bytes()))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	return err
}

func useOnce(s *seal.Seal, i int) error {
	for _, p := range []seal.Purpose{seal.Data, seal.Path, seal.Archive, seal.Cipher} {
		a := seal.AAD{Kind: "secret", Version: uint64(i)}
		record, err := s.Encrypt(p, a, []byte(strings.Repeat("x", i)))
		if err != nil {
			return err
		}
		if _, err := s.Decrypt(p, a, record); err != nil {
			return err
		}
	}
	nonce, ciphertext, err := s.EncryptWire([]byte("value"))
	if err != nil {
		return err
	}
	if _, err := s.DecryptWire(nonce[:], ciphertext); err != nil {
		return err
	}
	if _, _, err := s.Token("secret", "a/path"); err != nil {
		return err
	}
	if _, err := s.HashPath("a/path"); err != nil {
		return err
	}
	_, err = s.Fingerprint([]byte("a request"))
	return err
}
