// Package erase runs what works on key bytes in such a way that little of them stays behind.
//
// Go copies freely: an expanded AES key begins with the key itself, an HMAC state with the key under a mask, a big
// number is the scalar in machine words, and each lies on the heap until somebody else gets the memory. What is
// allocated inside Do is zeroed when the collector finds it dead, and the registers and the stack that were used are zeroed
// before Do returns. That is runtime/secret, which Go has when it is built with GOEXPERIMENT=runtimesecret (the
// Makefile does), on Linux on amd64 and arm64. Elsewhere Do only calls.
//
// Objects made inside Do may be used outside, and are zeroed in the end all the same; what using them leaves in
// registers and on stacks is not. Goroutines begun inside Do are not covered.
package erase

import (
	"runtime"
	"sync/atomic"
)

// collections is how many passes of the collector zero what became unreachable just now: a sync.Pool keeps its objects
// over two of them.
const collections = 3

// asked counts calls of Soon that nobody has seen to yet.
var asked atomic.Int64

// Soon has everything zeroed that was allocated inside Do and is unreachable by now, within a few passes of the
// collector, and does not wait for them.
func Soon() {
	if !Enabled || asked.Add(1) > 1 {
		return
	}
	go func() {
		for n := int64(1); n > 0; {
			n = asked.Load()
			for range collections {
				runtime.GC()
			}
			n = asked.Add(-n)
		}
	}()
}
