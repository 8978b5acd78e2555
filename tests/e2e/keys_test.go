package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/spike-ha/spike-ha/api/client"
)

// rotated waits until nothing is under a retired data key, and that is archived.
func (c *cluster) rotated(archived int) {
	c.t.Helper()
	c.eventually("all records are under the new key", func() error {
		var keys client.KeysAnswer
		out, err := c.try("key", "status", "--format", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &keys); err != nil {
			return err
		}
		data := map[string]int{}
		for _, e := range keys.Epochs {
			if e.Purpose == "data" {
				data[e.Status]++
			}
		}
		if keys.Stale > 0 || data["retired"] > 0 || data["archived"] < archived {
			return fmt.Errorf("%d of %d stale, keys %v", keys.Stale, keys.Records, data)
		}
		return nil
	})
}

// Keys are rotated under load, and the leader killed while records are
// re-encrypted: no request fails, everything that was acknowledged is read
// through every peer, then and by peers that have started since.
func TestRotationOfKeys(t *testing.T) {
	t.Parallel()
	c := up(t)
	cl := c.client(superuser)
	stop := c.load(cl)
	c.eventually("a rotation", func() error { // once the level has risen
		_, err := c.try("key", "rotate")
		return err
	})
	c.rotated(1)
	c.ctl("key", "rotate", "--purpose", "data")
	leader := peerName(c.leader(cl))
	c.kill(leader)
	c.ctl("key", "rotate", "--purpose", "data", "--purpose", "cipher")
	c.start(leader)
	c.rotated(3)
	written := stop()
	c.whole(cl)
	c.check(written)

	var all []string
	for i := range c.urls {
		all = append(all, peerName(i))
	}
	c.kill(all...)
	c.start(all...)
	c.whole(cl)
	c.check(written)
}
