package node

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestDurationsAreText(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{ReplaceAttr: durationsAsText}))
	log.Info("x", "for", 5*time.Second, "of", 3)
	if !strings.Contains(out.String(), `"for":"5s","of":3`) {
		t.Error(out.String())
	}
}
