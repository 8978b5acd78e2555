package node_test

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

// Transfers between accounts through all peers, while the leader stops: the sum
// stays what it was, and each acknowledged transfer is in it once.
func TestTransactionsAreAtomic(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	su := c.Client(nodetest.Role("superuser"))
	const accounts, start, workers, each = 4, 1000, 6, 15
	path := func(i int) string { return fmt.Sprintf("bank/%d", i) }
	balance := func(n int) map[string]string { return map[string]string{"balance": strconv.Itoa(n)} }
	var open []client.Operation
	none := secret.Version(0)
	for i := range accounts {
		open = append(open, client.Operation{Op: "put", Path: path(i), Values: balance(start), ExpectedVersion: &none})
	}
	if _, err := su.Transact(ctx, open...); err != nil {
		t.Fatal(err)
	}
	read := func(cl *client.Client, i int) (int, secret.Version, error) {
		values, answer, err := cl.Get(ctx, path(i), 0)
		if err != nil {
			return 0, 0, err
		}
		n, err := strconv.Atoi(values["balance"])
		return n, answer.Version, err
	}
	var done, conflicts atomic.Int64
	half := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	for w := range workers {
		// Each begins with another peer and goes on to the next when it fails.
		cl := c.Client(nodetest.Role("superuser"), w%3, (w+1)%3, (w+2)%3)
		wg.Go(func() {
			for k := 0; k < each; {
				from, to := (w+k)%accounts, (w+k+1+w%(accounts-1))%accounts
				a, versionA, err := read(cl, from)
				if err != nil {
					t.Error(err)
					return
				}
				b, versionB, err := read(cl, to)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = cl.Transact(ctx,
					client.Operation{Op: "put", Path: path(from), Values: balance(a - 1), ExpectedVersion: &versionA},
					client.Operation{Op: "put", Path: path(to), Values: balance(b + 1), ExpectedVersion: &versionB})
				switch secret.CodeOf(err) {
				case "":
					k++
					if done.Add(1) == workers*each/2 {
						once.Do(func() { close(half) })
					}
				case secret.CodeConflict:
					conflicts.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	select {
	case <-half:
		leader := c.Leader()
		c.Stop(leader)
		c.Leader()
		c.Start(leader)
	case <-finished:
	}
	<-finished
	sum, versions := 0, 0
	for i := range accounts {
		n, version, err := read(su, i)
		if err != nil {
			t.Fatal(err)
		}
		sum, versions = sum+n, versions+int(version)
	}
	if sum != accounts*start || versions != accounts+2*int(done.Load()) {
		t.Fatalf("the sum is %d, not %d; %d versions after %d acknowledged transfers", sum, accounts*start, versions, done.Load())
	}
	t.Logf("%d transfers, %d conflicts", done.Load(), conflicts.Load())
}
