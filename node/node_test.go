package node_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/spike-ha/spike-ha/node/nodetest"
)

// The thinnest path through every layer: three peers, three Keepers, a write
// through one peer and the same read from all.
func TestPutAndGetThroughEveryPeer(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{})
	ctx := context.Background()
	for i := range 3 {
		path := fmt.Sprintf("tenants/acme/db-%d", i)
		if _, err := c.Client(nodetest.Role("superuser"), i).Put(ctx, path, map[string]string{"password": fmt.Sprint("s3cret-", i)}, nil); err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			values, answer, err := c.Client(nodetest.Role("superuser"), j).Get(ctx, path, 0)
			if err != nil || values["password"] != fmt.Sprint("s3cret-", i) || answer.Version != 1 {
				t.Fatalf("written through peer %d, read through %d: %v %v %v", i+1, j+1, values, answer, err)
			}
		}
	}
}
