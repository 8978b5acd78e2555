package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spike-ha/spike-ha/tests/jepsen/forged"
)

// atATime is how many tries of package forged run at once: they wait most of the time.
const atATime = 8

// forge attacks Raft, with the library's handler of heartbeats and with the product's.
func forge(ctx context.Context, tries int, resume bool, out string) int {
	counts, err := forged.Open(filepath.Join(out, "forged.json"), revision, resume)
	if err == nil {
		err = counts.Run(ctx, tries, atATime)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	fmt.Print(counts.Table())
	if err := counts.Verdict(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}
