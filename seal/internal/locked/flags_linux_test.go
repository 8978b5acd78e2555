package locked_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// The kernel says of the pages: locked, not dumped, not handed to a fork. The guard pages cannot be read.
func TestPagesAreMarked(t *testing.T) {
	b := locked.New(5000)
	defer b.Destroy()
	if !b.Locked() {
		t.Fatal("this test needs 8 KiB of lockable memory (ulimit -l)")
	}
	at := uintptr(unsafe.Pointer(&b.Bytes()[0]))
	flags := strings.Fields(mapping(t, at)["VmFlags"])
	for flag, means := range map[string]string{"lo": "locked", "dd": "left out of core dumps", "dc": "left out of forks"} {
		if !slices.Contains(flags, flag) {
			t.Errorf("the pages are not %s: %v", means, flags)
		}
	}
	if behind := strings.Fields(mapping(t, at+5000)["VmFlags"]); slices.Contains(behind, "rd") {
		t.Errorf("the page behind can be read: %v", behind)
	}
}

// mapping is what /proc/self/smaps says of the mapping with the address.
func mapping(t *testing.T, at uintptr) map[string]string {
	t.Helper()
	all, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]string
	for line := range strings.Lines(string(all)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			if fields != nil {
				return fields
			}
			if from <= at && at < to {
				fields = map[string]string{}
			}
		} else if name, value, ok := strings.Cut(line, ":"); ok && fields != nil {
			fields[name] = value
		}
	}
	if fields == nil {
		t.Fatalf("no mapping has %#x", at)
	}
	return fields
}
