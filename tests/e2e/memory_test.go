//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/internal/memscan"
)

// Real peers that were used hard and sealed again hold neither root key nor shares. The other keys cannot be known from
// outside: seal's own test searches for them. Known, and so counted only: the peer that was asked for plaintext shares on
// the SPIKE wire may keep what it sent. Peers are closed to other processes, so the search takes root.
func TestSealedPeersForgetTheirKeys(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not searched: only root may look into a peer")
		return
	}
	c := up(t)
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	cl := c.client(superuser)
	stop := c.load(cl)
	var answer struct {
		Shards map[int][32]byte `json:"shards"`
	}
	const asked = 0
	must(c.client("spike/pilot/role/recover", asked).Wire(ctx, client.WireRecover, "", struct{}{}, &answer))
	status, err := cl.Status(ctx)
	must(err)
	c.eventually("the keys are rotated", func() error {
		_, err := c.try("key", "rotate") // refused until the format level has risen
		return err
	})
	var root, shares memscan.Needles
	var points []secretsharing.Share
	for i, share := range answer.Shards {
		shares.Add(fmt.Sprintf("share %d", i), share[:])
		value := group.P256.NewScalar()
		must(value.UnmarshalBinary(share[:]))
		if len(points) < status.Threshold {
			points = append(points, secretsharing.Share{ID: group.P256.NewScalar().SetUint64(uint64(i)), Value: value})
		}
	}
	secret, err := secretsharing.Recover(uint(status.Threshold-1), points)
	must(err)
	key, err := secret.MarshalBinary()
	must(err)
	root.Add("root key", key)
	find := func(peer int, n *memscan.Needles) []memscan.Hit {
		hits, _, err := memscan.Find(c.pid(peerName(peer)), n)
		must(err)
		return hits
	}
	for i := range 3 {
		if len(find(i, &root)) == 0 {
			t.Fatalf("%s has its keys, and the search does not find the root key", peerName(i))
		}
	}
	stop()
	must(cl.Seal(ctx, ""))
	for i := range 3 {
		c.eventually(peerName(i)+" has forgotten", func() error {
			hits := find(i, &root)
			if i != asked {
				hits = append(hits, find(i, &shares)...)
			}
			if len(hits) > 0 {
				return fmt.Errorf("%d hits: %v", len(hits), hits[0])
			}
			return nil
		})
	}
	t.Logf("%d parts of shares at the peer that gave them out", len(find(asked, &shares)))
}
