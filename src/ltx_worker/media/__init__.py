"""What callers send as media: fetched under guard, decoded, brought to one form."""
