"""One module per version of the schema, `vNNNN_what.py`. What has been released is never edited again."""
