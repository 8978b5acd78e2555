package client_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"https://nexus-1:8553":   "https://nexus-1:8553",
		"https://nexus-1:8553/":  "https://nexus-1:8553",
		"nexus-1:8553":           "https://nexus-1:8553",
		"[::1]:8553":             "https://[::1]:8553",
		"https://[::1]:8553":     "https://[::1]:8553",
		"https://nexus-1":        "", // no port
		"nexus-1":                "",
		":8553":                  "",
		"nexus-1:":               "",
		"nexus-1:http":           "",
		"nexus-1:65536":          "",
		"http://nexus-1:8553":    "",
		"https://u@nexus-1:8553": "",
		"u@nexus-1:8553":         "",
		"https://nexus-1:8553/a": "",
		"https://nexus-1:8553?a": "",
		"https://nexus-1:8553#a": "",
		"nexus-1:8553/a":         "",
		"":                       "",
	} {
		got, err := client.ParseAddress(given)
		if got != want || (err == nil) != (want != "") || err != nil && secret.CodeOf(err) != secret.CodeInvalid {
			t.Errorf("%q: %q, %v, want %q", given, got, err, want)
		}
	}
}

// A name that does not resolve is said to be that, however long it was tried.
func TestNoSuchHost(t *testing.T) {
	t.Parallel()
	c, err := client.New(client.Config{Addresses: []string{"nosuch.invalid:8553"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = c.Status(ctx)
	var e *secret.Error
	var name *net.DNSError
	if !errors.As(err, &e) || e.Code != secret.CodeUnavailable || e.Reason != client.ReasonNoSuchHost || !errors.As(err, &name) {
		t.Errorf("%+v", err)
	}
}
